"""A run resumes from one checkpoint, also where a worker of a killed command replaces it meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import other_ranks
from plain_run import outcome, plain_run, small_run
from training_data import write_small_shards

from his2lip.errors import CheckpointError
from his2lip.loss import WISELoss
from his2lip.models.load import load_model
from his2lip.models.provenance import previous_folder
from his2lip.models.resume import load_resume
from his2lip.training import build
from his2lip.training.loop import fit
from his2lip.training.progress import StepReport
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import open_data
from his2lip.training.source import StreamSource

EARLY, LATE = 2, 4  # steps of two checkpoints


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("shards") / "small", train=64, select=16)


@pytest.fixture
def run(shards: str, tmp_path: Path) -> RunDir:
    """A run that was killed after the checkpoint of step LATE; `early` beside its checkpoint is of EARLY."""
    run = RunDir(tmp_path / "train/small")

    def report(progress: StepReport) -> None:
        if progress.step == EARLY + 1:
            shutil.copytree(run.last, run.path / "early")
        if progress.step == LATE + 1:
            raise Killed

    with pytest.raises(Killed):
        plain_run(small_run(shards, tmp_path), report=report)
    return run


@pytest.mark.parametrize("reader", ["load_resume", "build_model"])
def test_model_and_optimizer_are_of_one_checkpoint_where_it_is_replaced_while_it_is_read(
    run: RunDir, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    real = getattr(build, reader)

    def late(*arguments: Any, **options: Any) -> Any:
        """As `replacing` does it, between the readings of the state and of the model, or before both."""
        monkeypatch.setattr(build, reader, real)
        run.last.rename(previous_folder(run.last))
        if reader == "load_resume":
            assert real(run.last).step == LATE, "between the two renamings the former one is whole"
        (run.path / "early").rename(run.last)
        shutil.rmtree(previous_folder(run.last))
        return real(*arguments, **options)

    monkeypatch.setattr(build, reader, late)
    steps: list[int] = []
    plain_run(small_run(shards, tmp_path), report=lambda progress: steps.append(progress.step))
    assert steps[0] == EARLY + 1
    whole = plain_run(small_run(shards, tmp_path / "whole"))
    assert outcome(run) == outcome(whole)


def test_a_damaged_checkpoint_that_nobody_replaces_is_refused(
    run: RunDir, shards: str, tmp_path: Path
) -> None:
    (run.last / "resume" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError):
        plain_run(small_run(shards, tmp_path))


def test_a_run_whose_best_checkpoint_is_gone_is_refused_before_it_is_trained_to_its_end(
    run: RunDir, shards: str, tmp_path: Path
) -> None:
    """A later epoch may be worse than the best one so far, and the run would end without any."""
    best = run.best.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as refused:
        plain_run(small_run(shards, tmp_path))
    assert (refused.value.key, refused.value.where) == ("best", run.best)
    best.rename(run.best)
    plain_run(small_run(shards, tmp_path))


def resume_on_rank(rank: int, shards: str, checkpoint: str, meet: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2)
    try:
        model = load_model(checkpoint)
        config, _, bank = open_data(small_run(shards, "unused"))
        source = StreamSource(config, bank, preprocess=model.preprocess, rank=rank, world=2)
        with pytest.raises(CheckpointError) as refused:
            fit(
                config,
                model,
                WISELoss.from_config(config.loss),
                source,
                report=lambda progress: pytest.fail("a step of two different models"),
                resume=load_resume(checkpoint),
                rank=rank,
                world=2,
            )
        assert refused.value.key == "last"
    finally:
        torch.distributed.destroy_process_group()


def test_workers_that_read_different_checkpoints_do_not_train(
    run: RunDir, shards: str, tmp_path: Path
) -> None:
    meet = str(tmp_path / "meet")
    with other_ranks(resume_on_rank, shards, str(run.path / "early"), meet):
        resume_on_rank(0, shards, str(run.last), meet)
