"""Training never reads a report split."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_data import write_small_shards

from his2lip.data.cards.card import load_card
from his2lip.data.shards.reader import open_shards
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import DatasetError
from his2lip.training.config import TrainConfig
from his2lip.training.run_inputs import open_data


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small shards, with MIHIC's split `test`, whose role is report, as the third split."""
    from dataclasses import replace

    from training_data import _patch

    folder = tmp_path_factory.mktemp("roles") / "mihic"
    with ShardWriter(folder, card=load_card("mihic"), generated=True) as writer:
        for split in ("train", "val", "test"):
            for i in range(16):
                patch = _patch("train", i, 64)
                writer.add(replace(patch, patch_id=f"{split}/{i}", split=split))
        writer.close()
    return str(folder)


@pytest.mark.parametrize("asked", ["test", "report"])
@pytest.mark.parametrize("key", ["split", "select"])
def test_a_report_split_is_refused_by_its_name_and_by_its_role(shards: str, key: str, asked: str) -> None:
    assert open_shards(shards).info.roles["test"] == "report"
    config = TrainConfig.model_validate({"data": {"shards": shards, key: asked}})
    with pytest.raises(DatasetError) as refused:
        open_data(config)
    assert (refused.value.key, refused.value.where) == (f"data.{key}", shards)


def test_splits_are_found_by_their_role(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(
        {"data": {"shards": write_small_shards(tmp_path / "s", train=16, select=16)}}
    )
    prepared, _, _ = open_data(config)
    assert (prepared.data.split, prepared.data.select) == ("train", "val")
