"""A `report` split is read by none of the commands that learn, tune, calibrate or choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from attempts import attempt
from cell_results import cell_result
from mlflow_stores import new_store
from training_data import _patch

from his2lip.data.cards.card import load_card
from his2lip.data.shards.writer import ShardWriter
from his2lip.evaluation.results import to_csv
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model

COMMANDS = {
    "train": "train recipe.yaml data.split={split}",
    "train, to choose a checkpoint": "train recipe.yaml data.select={split}",
    "tune, to train": "tune sweep.yaml train.data.split={split}",
    "tune": "tune sweep.yaml split={split}",
    "calibrate": "calibrate model --shards shards --split {split}",
    "captions draft": "captions draft captions-{split} --shards shards --model tiny --split {split}",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with shards of MIHIC's three splits; the role of `test` is report."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", new_store(folder))
        write_inputs()
        yield folder


def write_inputs() -> None:
    save_checkpoint("model", load_model("tiny"), meta={})
    with ShardWriter("shards", card=load_card("mihic"), generated=True) as writer:
        for split in ("train", "val", "test"):
            for i in range(32):
                writer.add(replace(_patch("train", i, 64), patch_id=f"{split}/{i}", split=split))
    Path("recipe.yaml").write_text("{data: {shards: shards, batch_size: 4, lanes: 2}}")
    Path("sweep.yaml").write_text(
        "{name: s, train: {data: {shards: shards, batch_size: 4, lanes: 2}}, "
        "space: {loss.tau: {kind: log, low: 0.1, high: 1.0}}}"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_learns_refuses_a_report_split_and_accepts_a_select_split(
    here: Path, command: str
) -> None:
    for split in ("test", "report"):
        refused = attempt(*COMMANDS[command].format(split=split).split())
        assert refused.ended == "refused", refused.said
        assert "report" in refused.said
    accepted = attempt(*COMMANDS[command].format(split="val").split())
    # Random weights may know nothing of the labels, which `calibrate` finds after it has read them.
    assert accepted.ended in ("accepted", "done") or "carry no information" in accepted.said, accepted.said


def test_a_champion_is_not_chosen_on_a_report_split(here: Path) -> None:
    rows = [cell_result(model=name, split="test", role="report") for name in ("one", "two")]
    Path("leaderboard.csv").write_text(to_csv(rows), encoding="utf-8")
    refused = attempt("models", "promote", "--best", ".", "--by", "mean", "--alias", "champion")
    assert refused.ended == "refused", refused.said
    assert "role=select" in refused.said
