"""A training process is killed, disturbed or cannot write: the run ends as the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fork_server import child, until
from moments import MANY, moments
from plain_run import (
    outcome,
    plain_run,
    small_run,
    told_run,
    told_run_that_may_write_less,
    told_run_with_a_clock_that_jumps_back,
)
from reliability_page import Record
from training_data import write_small_shards

from his2lip.errors import RunError
from his2lip.models.provenance import is_checkpoint, read_meta
from his2lip.training.config import TrainConfig
from his2lip.training.run_directory import RunDir

STEPS, EPOCH, EVERY = 8, 4, 2  # steps of a run and of an epoch; steps between two checkpoints
WRITES = 6  # checkpoints that it writes
_EQUAL = "the same command resumes it: weights, optimizer and history of the undisturbed run"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("killed") / "shards", train=64, select=16)


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return plain_run(small_run(shards, tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def whole(undisturbed: RunDir) -> dict[str, Any]:
    """What the undisturbed run ends with."""
    return outcome(undisturbed)


def resume(config: TrainConfig, whole: dict[str, Any]) -> list[int]:
    """Runs the same command again, and checks its end; the steps that it did."""
    steps: list[int] = []
    run = plain_run(config, report=lambda progress: steps.append(progress.step))
    assert outcome(run) == whole
    return list(dict.fromkeys(steps))


def steps_after(saved: int) -> list[int]:
    """The steps that are reported after a checkpoint: an epoch that it ends is reported again."""
    return list(range(saved if saved and saved % EPOCH == 0 else saved + 1, STEPS + 1))


def folder_of(config: TrainConfig) -> RunDir:
    return RunDir(Path(config.storage) / "train" / config.name)


@MANY
def test_a_run_that_is_killed_in_mid_epoch_repeats_no_step_before_its_last_checkpoint(
    shards: str, whole: dict[str, Any], tmp_path: Path, count: int, record: Record
) -> None:
    for i, part in enumerate(moments("mid-epoch", count)):
        config = small_run(shards, tmp_path / str(i))
        with child(told_run, config) as process:
            process.wait_for(1 + int(part * (STEPS - 1)))
            time.sleep(part * 0.02)
            process.kill()
        last = folder_of(config).last
        saved = read_meta(last)["step"] if is_checkpoint(last) else 0
        assert resume(config, whole) == steps_after(saved)
    record("kill -9 of a training process in mid-epoch", "at seeded steps, without Ray", count, _EQUAL)


@MANY
def test_a_run_that_is_killed_while_it_writes_a_checkpoint_keeps_the_one_before(
    shards: str, whole: dict[str, Any], tmp_path: Path, count: int, record: Record
) -> None:
    unfinished = 0
    for i, part in enumerate(moments("mid-checkpoint", count)):
        config = small_run(shards, tmp_path / str(i))
        rng, seen = random.Random(f"checkpoint {i}"), set[str]()
        nth = rng.randint(1, WRITES)
        run = folder_of(config)
        run.path.mkdir(parents=True)

        def writing(run: RunDir = run, seen: set[str] = seen, nth: int = nth) -> bool:
            seen.update(name for name in os.listdir(run.path) if name.endswith(".tmp") and name[0] == ".")
            return len(seen) >= nth

        with child(told_run, config) as process:
            until(writing)
            time.sleep(part * 0.03)
            process.kill()
        unfinished += any(name[0] == "." and name != ".lock" for name in os.listdir(run.path))
        steps = resume(config, whole)
        assert not steps or steps == list(range(steps[0], STEPS + 1))
        assert not steps or steps[0] > EVERY * max(0, (nth - 1) // 2 - 1)
    assert unfinished, "no kill hit the writing of a checkpoint"
    how = f"at seeded moments of a seeded checkpoint, without Ray; {unfinished} left an unfinished folder"
    record("kill -9 of a training process in mid-checkpoint", how, count, _EQUAL)


@MANY
def test_a_second_command_on_a_run_is_refused_and_disturbs_nothing(
    shards: str, whole: dict[str, Any], tmp_path: Path, count: int, record: Record
) -> None:
    for i, part in enumerate(moments("second", count)):
        config = small_run(shards, tmp_path / str(i))
        with child(told_run, config) as process:
            process.wait_for(1 + int(part * (STEPS - 2)))
            pid = process.process.pid
            assert pid is not None
            # The second command waits for a moment, in which the first one would end.
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(RunError) as refused:
                plain_run(config)
            os.kill(pid, signal.SIGCONT)
            assert refused.value.where == folder_of(config).path
            process.end()
        assert resume(config, whole) == []
    how = "at seeded steps of the first one, without Ray"
    record("a second command on one run", how, count, "refused; the first ends as undisturbed")


@MANY
def test_a_clock_that_jumps_back_changes_nothing(
    shards: str, whole: dict[str, Any], tmp_path: Path, count: int, record: Record
) -> None:
    for i, part in enumerate(moments("clock", count)):
        config = small_run(shards, tmp_path / str(i), checkpoint={"every_minutes": 1e-6, "select_by": "loss"})
        step = 1 + int(part * (STEPS - 1))
        with child(told_run_with_a_clock_that_jumps_back, config, step) as process:
            process.wait_for(step)
            process.kill() if i % 2 else process.end()
        resume(config, whole)
    how = "`time.time` of the process is set back by a day at seeded steps; every second one is killed too"
    record("the clock jumps back in a run", how, count, _EQUAL)


@MANY
def test_a_checkpoint_that_fails_half_way_ends_the_run_and_leaves_the_one_before(
    shards: str, undisturbed: RunDir, whole: dict[str, Any], tmp_path: Path, count: int, record: Record
) -> None:
    largest = max(path.stat().st_size for path in undisturbed.best.glob("*.safetensors"))
    for i, part in enumerate(moments("half-way", count)):
        config = small_run(shards, tmp_path / str(i))
        step = random.Random(f"half-way {i}").randint(1, STEPS - 2)
        with child(told_run_that_may_write_less, config, step, int(part * largest)) as process:
            while isinstance(told := process.told(), int):
                pass
            process.end()
        key, where = told
        assert key == "disk"
        assert where in (str(folder_of(config).last), str(folder_of(config).best))
        last = folder_of(config).last
        saved = read_meta(last)["step"] if is_checkpoint(last) else 0
        # A step is reported before its checkpoint, and the end of an epoch afterwards.
        assert saved == (step if step % EPOCH == 0 else (step - 1) // EVERY * EVERY)
        assert resume(config, whole) == steps_after(saved)
    how = "files may not grow beyond a seeded size (RLIMIT_FSIZE) from a seeded step on"
    record("a checkpoint whose writing fails half-way", how, count, f"refused in one sentence; {_EQUAL}")
