"""What a checkpoint records of the datasets that it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from his2lip.data.cards.card import Card
from his2lip.data.shards.reader import open_shards
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import ConfigError
from his2lip.models.provenance import blended_meta
from his2lip.models.training_data import TrainingData, training_data_of

ROWS = [
    ("train", "Tumor", "Ki67", "DAB"),
    ("train", "Tumor", None, "DAB"),
    ("train", None, "CD3", "AEC"),
    ("select", "Stroma", "ER", "DAB"),
]


@pytest.fixture
def record(tmp_path: Path) -> TrainingData:
    splits = {"train": {"role": "train"}, "select": {"role": "select"}}
    card = Card.model_validate(
        {"name": "own", "reader": "none", "splits": splits, "organ": ["lung", "colon"]}
    )
    with ShardWriter(tmp_path / "own", card=card, generated=True) as writer:
        for number, (split, tissue, biomarker, stain) in enumerate(ROWS):
            labels = {"tissue": tissue, "biomarker": biomarker, "stain": stain}
            place = {"patch_id": f"own/{number}.png", "dataset": "own", "split": split}
            writer.add(Patch(**place, image=bytes([number]), width=64, height=64, **labels))
    return TrainingData.of(open_shards(tmp_path / "own"), "train")


def test_a_split_is_recorded_with_its_organs_stains_tissue_types_and_biomarkers(record: TrainingData) -> None:
    assert record.title == "own (generated)"
    assert (record.split, record.patches, record.organs) == ("train", 3, ["lung", "colon"])
    assert record.stains == {"AEC": 1, "DAB": 2}
    assert record.tissues == {"Tumor": 2}
    assert record.biomarkers == {"CD3": 1, "Ki67": 1}
    assert training_data_of({"training_data": [record.model_dump(mode="json")]}) == [record]
    assert training_data_of({}) == []


def test_a_blend_was_trained_on_the_datasets_of_both_models(record: TrainingData) -> None:
    other = record.model_copy(update={"dataset": "other", "generated": False})
    base = {"training_data": [record.model_dump()]}
    tuned = {"training_data": [record.model_dump(), other.model_dump()]}
    blend = blended_meta("base", base, "tuned", tuned)
    assert [data.title for data in training_data_of(blend)] == ["own (generated)", "other"]


def test_a_damaged_record_is_refused(record: TrainingData) -> None:
    with pytest.raises(ConfigError) as refused:
        training_data_of({"training_data": [record.model_dump() | {"patches": "many"}]})
    assert refused.value.key == "patches"
