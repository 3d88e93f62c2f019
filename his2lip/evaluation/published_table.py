"""The paper's Table 2: published figures of each model on each dataset."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from his2lip import resources

TABLE = "benchmarks/published/table2_zero_shot.csv"  # model, trained, dataset, accuracy, f1, in percent

# The paper's names of datasets, by letters and digits, that differ from the names of our cards.
_CARDS = {"hnsccmifmihc": "hnscc"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One pair of figures, fractions in [0, 1]; names as the paper writes them."""

    model: str
    dataset: str
    accuracy: float
    macro_f1: float


def published_figures() -> list[Published]:
    """All rows of the table, in its order; none where the project has no table."""
    path = resources.root() / TABLE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as source:
        return [
            Published(
                model=row["model"],
                dataset=row["dataset"],
                accuracy=float(row["accuracy"]) / 100,
                macro_f1=float(row["f1"]) / 100,
            )
            for row in csv.DictReader(source)
        ]


def comparison_name(name: str) -> str:
    """A name of a model or dataset in the form by which the paper's names and ours are compared."""
    letters = "".join(c for c in name.lower() if c.isalnum())
    return _CARDS.get(letters, letters)
