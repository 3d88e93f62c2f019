"""What weights were trained on: datasets with their organs, stains, tissue types and biomarkers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from his2lip.config import Config, validate
from his2lip.data.shards import ShardSet, title_of

TRAINING_DATA = "training_data"  # key in his2lip.json


class TrainingData(Config):
    """One split of one dataset that weights were trained on. Counts leave out patches without a label."""

    dataset: str
    generated: bool
    """Whether its images are generated, not real."""
    split: str
    patches: int
    organs: list[str]
    """As on the dataset's card; empty: unknown."""
    stains: dict[str, int]
    """Stain -> patches."""
    tissues: dict[str, int]
    """Tissue type -> patches."""
    biomarkers: dict[str, int]
    """Biomarker -> patches."""

    @classmethod
    def of(cls, shards: ShardSet, split: str) -> TrainingData:
        """The record of training on a split."""
        table = shards.table(split, ["stain", "tissue", "biomarker"])

        def count(column: str) -> dict[str, int]:
            return dict(sorted(Counter(v for v in table[column].to_pylist() if v is not None).items()))

        return cls(
            dataset=shards.info.name,
            generated=shards.info.generated,
            split=split,
            patches=len(table),
            organs=shards.info.card.get("organ", []),
            stains=count("stain"),
            tissues=count("tissue"),
            biomarkers=count("biomarker"),
        )

    @property
    def title(self) -> str:
        """The dataset's name, marked where it is generated."""
        return title_of(self.dataset, generated=self.generated)


def training_data_of(*metas: Mapping[str, Any]) -> list[TrainingData]:
    """The datasets in the contents of one or several his2lip.json, each once; empty: not recorded."""
    entries = [entry for meta in metas for entry in meta.get(TRAINING_DATA, ())]
    found = [validate(TrainingData, entry, where=TRAINING_DATA) for entry in entries]
    return [data for i, data in enumerate(found) if data not in found[:i]]
