"""A leaderboard of the size of a real one, with synthetic predictions: 13 rows on ten datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from cell_results import cell_result

from his2lip.data.cards.card import load_card
from his2lip.evaluation.leaderboard import with_published
from his2lip.evaluation.metrics import Predictions, confusion, measure, per_class
from his2lip.evaluation.results import CellResult, Compared, intervals, to_csv
from his2lip.evaluation.statistics import Clusters

DATASETS = (
    *("mihic", "pantumor", "bcdata", "hnscc", "ihc4bc"),
    *("her2-ihc-40x", "bci", "mist", "anhir-lung", "acrobat"),
)
PAPER = DATASETS[:4]  # also scored by the protocol `paper`
# Row -> share of the units that it gets right beyond chance.
MODELS = {
    "CLIP": 0.04, "PLIP": 0.02, "BiomedCLIP": 0.12, "MUSK": 0.1, "CONCH": 0.22,
    "HIS2CLIP": 0.3, "HIS2PLIP": 0.32, "HIS2BiomedCLIP": 0.4,
    "baseline:chance": 0.0, "baseline:majority": 0.0, "baseline:mean-colour": 0.15,
    "baseline:stained-area": 0.2, "baseline:dab-threshold": 0.25,
}  # fmt: skip
TUNED = ("HIS2CLIP", "HIS2PLIP", "HIS2BiomedCLIP")
UNITS, CASES = 96, 24


def real_size(folder: Path) -> Path:
    """Writes leaderboard.csv and a file of predictions for each grid cell; the path of the former.

    BCI and HER2-IHC-40x have no intervals, and baselines of stain are only on tasks of two classes, as in a
    real benchmark.
    """
    cells = [*_cells("default", DATASETS), *_cells("paper", PAPER)]
    for cell in cells:
        place = folder / "cells" / cell.cell
        place.mkdir(parents=True)
        (place / "predictions.parquet").touch()
    path = folder / "leaderboard.csv"
    path.write_text(to_csv(with_published(cells, {name: name for name in DATASETS})))
    return path


def _cells(protocol: str, datasets: Sequence[str]) -> Iterator[CellResult]:
    for number, dataset in enumerate(datasets):
        rng = np.random.default_rng(number)
        classes = list(load_card(dataset).protocols[protocol].classes)
        own = [m for m in MODELS if m[9:] not in ("stained-area", "dab-threshold") or len(classes) == 2]
        labels = np.arange(UNITS) % len(classes)
        cells = [_cell(rng, dataset, protocol, model, classes, labels) for model in own]
        yield from (c.model_copy(update={"compared": _compared(c, cells)}) for c in cells)


def _cell(
    rng: np.random.Generator, dataset: str, protocol: str, model: str, classes: list[str], labels: np.ndarray
) -> CellResult:
    right = rng.random(UNITS) < MODELS[model] * (2 if dataset == "mihic" else 1)
    guessed = rng.integers(len(classes), size=UNITS) * (model != "baseline:majority")
    scores = rng.random((UNITS, len(classes))).astype(np.float32)
    predictions = Predictions(labels, np.where(right, labels, guessed), classes, scores=scores)
    clusters = Clusters([f"case {i % CASES}" for i in range(UNITS)], "case")
    unknown = dataset in ("bci", "her2-ihc-40x")
    return cell_result(
        model=model, dataset=dataset, protocol=protocol, n=UNITS, clusters=CASES, classes=classes,
        cell=f"{model}-{dataset}-{protocol}".replace(":", "-").lower(),
        in_domain=dataset == "mihic" and model in TUNED,
        no_interval="each slide has one label, and the slides are unknown" if unknown else None,
        confusion=confusion(predictions), per_class=per_class(predictions), **measure(predictions),
        **({} if unknown else intervals(predictions, clusters)),
    )  # fmt: skip


def _compared(cell: CellResult, cells: list[CellResult]) -> dict[str, Compared]:
    """The models whose interval reaches the best figure are the top group."""
    found = {}
    for name in ("macro_f1", "chance_corrected"):
        interval = cell.interval(name)
        if interval is not None and cell.model != "baseline:chance":
            best = max(getattr(c, name) for c in cells)
            found[name] = Compared(
                top=interval[1] >= best, groups="a" if interval[1] >= best else "b", detectable=0.12
            )
    return found
