"""Training on real Ray gives the same weights with any number of workers, and after processes were killed."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from listeners import listeners
from mlflow_stores import new_store
from plain_run import outcome, plain_run
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from safetensors.torch import load_file
from training_data import write_small_shards

from his2lip.config import dump_yaml, load, resolved
from his2lip.errors import DatasetError, RunError, StorageError
from his2lip.models.provenance import read_meta
from his2lip.runtime import usable_cpus
from his2lip.training.config import TrainConfig
from his2lip.training.estimate import estimate_run
from his2lip.training.local import run_in_process
from his2lip.training.progress import StepReport
from his2lip.training.ray_train import (
    FailureCallback,
    Job,
    ReportQueue,
    TrainResult,
    _user_error,
    _with_threads,
    train,
)
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import open_data

pytestmark = pytest.mark.usefixtures("ray_local")

EPOCH = 5  # steps of one epoch
STEPS = 15  # steps of a run


LINE = re.compile(r"^\S+ \S+ (?:DEBUG|INFO|WARNING|ERROR) \S+:(\d+) (his2lip\S*): (.*)$")


def logged(run: Path) -> list[tuple[int, str]]:
    """The lines of a run's log: the process that wrote it, and its message."""
    text = (run / "his2lip.log").read_text() if (run / "his2lip.log").is_file() else ""
    found = (LINE.match(line) for line in text.splitlines())
    return [(int(line[1]), line[3]) for line in found if line]


def logged_steps(run: Path) -> list[int]:
    """The steps that worker 0 reported, in order."""
    return [int(step) for _, said in logged(run) for step in re.findall(r"^worker 0: step (\d+),", said)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def config_file(folder: Path) -> Path:
    """The configuration file of all runs in this file, which differ in their names."""
    shards = write_small_shards(folder / "shards", train=332, select=64)
    tree = {
        "data": {"shards": shards, "batch_size": 64, "lanes": 4},
        "optim": {"lr": 1e-3, "epochs": 3, "warmup": 0.1},
        "checkpoint": {"every_steps": 3},
        "workers": {"threads": 1},  # the tensors are too small for more
        "log_every": 1,
        "storage": str(folder / "runs"),
    }
    path = folder / "train.yaml"
    path.write_text(dump_yaml(TrainConfig.model_validate(tree)))
    return path


def named(config_file: Path, name: str, *overrides: str) -> TrainConfig:
    return load(TrainConfig, config_file, [f"name={name}", *overrides])


def digest(run: TrainResult | RunDir) -> str:
    return read_meta(run.last)["tensor_digest"]


@pytest.fixture(scope="module")
def alone(folder: Path) -> tuple[str, ...]:
    """Overrides of runs in this process, without Ray."""
    return (f"storage={folder / 'alone'}", "data.loader=local", "data.decode_threads=1")


@dataclass(frozen=True)
class Whole:
    """The uninterrupted run in this process, and its weights after the first epoch."""

    run: RunDir
    first: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(config_file: Path, alone: tuple[str, ...]) -> Whole:
    config, first = named(config_file, "whole", *alone), dict[str, torch.Tensor]()
    last = RunDir(Path(config.storage) / "train/whole").last

    def report(progress: StepReport) -> None:
        if progress.step == EPOCH:
            first.update(load_file(last / "model.safetensors"))

    return Whole(plain_run(config, report=report), first)


def test_a_trial_of_a_sweep_gets_bitwise_equal_weights(
    whole: Whole, config_file: Path, tmp_path: Path
) -> None:
    seen: list[Any] = []
    config = named(config_file, "here", "checkpoint.select_by=loss")
    trained = run_in_process(config, report=seen.append, folder=tmp_path)
    torch.use_deterministic_algorithms(False)
    assert [m["step"] for m in seen] == [EPOCH, 2 * EPOCH, STEPS]
    assert trained.metrics["select/loss"] == history(whole.run)[-1]["select/loss"]
    assert read_meta(tmp_path / "best")["tensor_digest"] == read_meta(whole.run.best)["tensor_digest"]


def history(run: RunDir) -> list[dict[str, float]]:
    """The step of each epoch and its losses; the command also scores the select split."""
    names = ("step", "train/loss", "select/loss", "select/excess")
    return [{name: epoch[name] for name in names} for epoch in outcome(run)["history"]]


@dataclass(frozen=True)
class EndedEarly:
    """The run on Ray with two workers, which its driver ended after the first epoch; and a copy of it."""

    early: TrainResult
    reports: list[StepReport]
    listening: set[tuple[str, str]]  # process and address of every port that was listened on
    copy: Path


@pytest.fixture(scope="module")
def ended_early(ray_local: None, config_file: Path, folder: Path) -> EndedEarly:
    reports: list[StepReport] = []
    listening: set[tuple[str, str]] = set()

    def on_report(progress: StepReport) -> bool:
        reports.append(progress)
        listening.update(listeners(os.getpid()))
        return progress.kind == "epoch"

    early = train(named(config_file, "pair", "workers.num=2"), on_report=on_report)
    copy = shutil.copytree(early.run_dir, folder / "alone/train/pair")
    return EndedEarly(early, reports, listening, copy)


def test_a_run_that_the_driver_ends_early_stops_its_workers_after_that_epoch(ended_early: EndedEarly) -> None:
    assert ended_early.early.steps == ended_early.reports[-1].step == EPOCH
    assert not ended_early.early.finished_before


def test_two_workers_give_the_weights_of_one_worker(whole: Whole, ended_early: EndedEarly) -> None:
    (mine,), (other, *_) = ended_early.early.history, history(whole.run)
    assert mine["select/loss"] == pytest.approx(other["select/loss"], abs=1e-5)
    two = load_file(ended_early.copy / "last/model.safetensors")
    assert two.keys() == whole.first.keys()
    for name, tensor in whole.first.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)  # measured: 4e-6


def test_the_log_of_a_run_has_the_lines_of_its_driver_and_of_each_worker(ended_early: EndedEarly) -> None:
    lines = logged(ended_early.early.run_dir)
    driver = next(pid for pid, said in lines if said.startswith("run pair (id "))
    first, second = (
        next(pid for pid, said in lines if said.startswith(f"worker {rank} of 2 ")) for rank in (0, 1)
    )
    assert len({driver, first, second}) == 3
    assert any("epoch 1" in said for pid, said in lines if pid == first)


def test_no_process_of_a_training_run_listens_on_an_external_address(ended_early: EndedEarly) -> None:
    names = {name for name, _ in ended_early.listening}
    assert {"gcs_server", "raylet"} <= names
    assert any("Train" in name for name in names), "the workers of Ray were seen too"
    assert {address for _, address in ended_early.listening} == {"127.0.0.1"}, ended_early.listening


@dataclass(frozen=True)
class Killed:
    """The command that resumes the run with one worker, and what was killed; and the same run, resumed."""

    steps: list[int]  # that the log had when the command was killed
    shown: str  # on its terminal
    saved: int  # the step of the last checkpoint then
    later: TrainResult
    steps_later: list[int]  # reported by the resumed run


@pytest.fixture(scope="module")
def killed(ended_early: EndedEarly, config_file: Path, folder: Path) -> Killed:
    """Kills the worker of `his2lip train` in the second epoch, and the command itself in the third one."""
    run = ended_early.early.run_dir
    environment = {k: v for k, v in os.environ.items() if k != "HIS2LIP_LOG" and not k.startswith("RAY_")}
    environment["MLFLOW_TRACKING_URI"] = new_store(folder)
    command = [sys.executable, "-m", "his2lip", "--verbose", "train", str(config_file), "name=pair"]
    with (
        (folder / "shown").open("w") as shown,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=shown, stderr=shown) as process,
    ):

        def wait(reached: Callable[[list[int]], bool]) -> None:
            while process.poll() is None and not reached(logged_steps(run)):
                time.sleep(0.02)
            assert process.returncode is None, (folder / "shown").read_text()

        wait(lambda steps: EPOCH + 2 in steps)  # step 6 is saved, and step 9 not yet
        os.kill(next(pid for pid, said in logged(run) if said.startswith("worker 0 of 1 ")), signal.SIGKILL)
        wait(lambda steps: 2 * EPOCH + 1 in steps)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    steps, saved = logged_steps(run), read_meta(run / "last")["step"]
    # The orphaned worker may run for seconds and do more steps. Then fewer steps are left.
    steps_later: list[int] = []
    later = train(named(config_file, "pair"), on_report=lambda progress: steps_later.append(progress.step))
    return Killed(steps, (folder / "shown").read_text(), saved, later, steps_later)


@pytest.fixture(scope="module")
def pair(killed: Killed) -> TrainResult:
    """The run, which is finished."""
    return killed.later


def test_a_run_whose_worker_was_killed_is_resumed_at_its_last_checkpoint(killed: Killed) -> None:
    assert "worker 0 failed" in killed.shown
    assert any(later <= earlier for earlier, later in itertools.pairwise(killed.steps)), (
        "no step was repeated"
    )
    assert killed.steps[:EPOCH] == [1, 2, 3, 4, 5]
    assert min(killed.steps[EPOCH:]) > EPOCH, "the run was started again, not resumed"


def test_a_run_whose_worker_and_driver_were_killed_ends_with_the_weights_of_one_that_was_not(
    killed: Killed, ended_early: EndedEarly, config_file: Path, alone: tuple[str, ...]
) -> None:
    assert 2 * EPOCH <= killed.saved < STEPS
    assert all(step > EPOCH for step in killed.steps_later), "the run was started again, not resumed"
    other = plain_run(named(config_file, "pair", *alone))
    assert other.path == ended_early.copy, "resumed in this process after the first epoch"
    assert digest(killed.later) == digest(other)
    assert read_meta(killed.later.best)["tensor_digest"] == read_meta(other.best)["tensor_digest"]
    assert history(RunDir(killed.later.run_dir)) == history(other)


def test_a_verbose_command_shows_its_own_lines_and_those_of_its_workers(killed: Killed) -> None:
    first = next(pid for pid, said in logged(killed.later.run_dir) if said.startswith("worker 0 of 1 "))
    assert "run pair (id " in killed.shown
    assert re.search(rf"pid={first}.*worker 0 of 1 ", killed.shown), "Ray forwards the worker's lines"


def test_run_writes_the_checkpoints_best_and_last_only(pair: TrainResult, config_file: Path) -> None:
    assert pair.steps == STEPS
    assert [epoch["step"] for epoch in pair.history] == [EPOCH, 2 * EPOCH, STEPS]
    assert pair.history[-1]["select/excess"] < pair.history[0]["select/excess"]
    assert {p.name for p in pair.run_dir.iterdir()} == {
        *("best", "last", "ray", "run.json", ".lock", "his2lip.log"),
    }
    assert sum(p.stat().st_size for p in (pair.run_dir / "ray").rglob("*")) < 10_000
    meta = read_meta(pair.best)
    saved = TrainConfig.model_validate(meta["config"])
    assert saved.optim == named(config_file, "x").optim
    assert saved.data.decode_threads == usable_cpus(), "what auto stood for"
    assert meta["vocabularies"]["tissue"][0] == "Alveoli"
    assert meta["terms"]["datasets"] == {"mihic-generated": "none, generated"}
    (seen,) = meta["training_data"]
    assert (seen["dataset"], seen["generated"], seen["organs"]) == ("mihic", True, ["lung"])
    assert {"data_digest", "captions_digest", "patch", "code_version", "step", "metrics"} <= meta.keys()
    assert not (pair.best / "resume").exists()


def test_auto_threads_are_those_of_the_machine_and_a_resumed_run_keeps_its_own(
    ray_local: None, config_file: Path, tmp_path: Path
) -> None:
    config = named(config_file, "auto", "workers.threads=auto")
    run = RunDir(tmp_path)
    new: dict[str, Any] = {"id": "1", "status": "running", "code_version": "1", "config": resolved(config)}
    found, state, cpus = _with_threads(config, run, new)
    assert (found.workers.threads, cpus) == (2, 2), "the CPUs of this Ray"
    assert run.read() == state == new | {"resolved": {"workers.threads": 2}}
    run.last.mkdir()
    started_elsewhere = new | {"resolved": {"workers.threads": 7}}
    resumed, _, cpus = _with_threads(config, run, started_elsewhere)
    assert (resumed.workers.threads, cpus) == (7, 2), "this machine is smaller"
    asked = named(config_file, "auto", "workers.threads=3")
    resumed, _, cpus = _with_threads(asked, run, started_elsewhere)
    assert (resumed.workers.threads, cpus) == (3, 3)
    before_this_option = new | {"config": resolved(named(config_file, "auto", "workers.threads=1"))}
    assert _with_threads(config, run, before_this_option)[0].workers.threads == 1


def test_finished_run_is_not_run_again(pair: TrainResult, config_file: Path) -> None:
    notes: list[str] = []
    before = (pair.last / "model.safetensors").stat().st_mtime_ns
    again = train(named(config_file, "pair", "workers.num=2"), on_report=pytest.fail, on_note=notes.append)
    assert again.finished_before
    assert not pair.finished_before
    assert "was finished before" in notes[0]
    assert (again.metrics, again.steps) == (pair.metrics, pair.steps)
    assert (pair.last / "model.safetensors").stat().st_mtime_ns == before


def test_the_next_run_of_its_kind_is_estimated_from_it(pair: TrainResult, config_file: Path) -> None:
    config, shards, _ = open_data(named(config_file, "next", "seed=7", "workers.num=2"))
    found = estimate_run(config, shards)
    assert found.steps == STEPS
    assert found.based_on is not None, "the latest finished run: of this or of another test"
    base = RunDir(pair.run_dir.parent / found.based_on)
    assert found.seconds is not None
    assert 0.05 < found.seconds < 300
    sizes = [p.stat().st_size for place in (base.best, base.last) for p in place.rglob("*") if p.is_file()]
    assert found.bytes == sum(sizes)
    other = named(config_file, "next", "workers.num=2", "data.batch_size=32")
    assert estimate_run(other, shards).based_on is None


@pytest.mark.slow
def test_a_run_of_two_workers_is_resumed_on_two_and_ends_with_the_weights_of_one(
    ray_local: None, whole: Whole, config_file: Path
) -> None:
    config = named(config_file, "two", "workers.num=2")
    train(config, on_report=lambda progress: progress.kind == "epoch")
    done = train(config)
    assert (done.steps, done.finished_before) == (STEPS, False)
    one, two = load_file(whole.run.last / "model.safetensors"), load_file(done.last / "model.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
def test_a_run_on_an_object_store_is_resumed_there_and_ends_with_the_same_weights(
    whole: Whole, config_file: Path, tmp_path: Path
) -> None:
    asked = named(config_file, "stored", f"storage={(tmp_path / 'bucket').as_uri()}")
    train(asked, on_report=lambda report: report.kind == "epoch")
    files = tmp_path / "bucket/train/stored"
    assert {"best.tar", "last.tar", "run.json"} <= {path.name for path in files.iterdir()}
    done = train(asked)
    assert (done.steps, digest(done)) == (STEPS, digest(whole.run))
    assert read_meta(done.best)["tensor_digest"] == read_meta(whole.run.best)["tensor_digest"]
    assert not list(files.glob("*.tmp"))
    assert train(asked, on_report=pytest.fail).finished_before


def test_other_options_under_the_same_name_are_refused(pair: TrainResult, config_file: Path) -> None:
    with pytest.raises(RunError) as refused:
        train(named(config_file, "pair", "optim.lr=0.002"))
    assert (refused.value.key, refused.value.where) == ("name", pair.run_dir)
    assert "optim.lr" in refused.value.what


def test_a_finished_run_whose_best_checkpoint_was_removed_is_refused(
    pair: TrainResult, config_file: Path
) -> None:
    run = pair.run_dir.parent / "without-best"
    shutil.copytree(pair.run_dir, run)
    shutil.rmtree(run / "best")
    with pytest.raises(RunError) as refused:
        train(named(config_file, run.name))
    assert (refused.value.key, refused.value.where) == ("best", run / "best")


def test_a_finished_run_needs_its_last_checkpoint_no_more(pair: TrainResult, config_file: Path) -> None:
    run = pair.run_dir.parent / "without-last"
    shutil.copytree(pair.run_dir, run)
    shutil.rmtree(run / "last")  # as `his2lip gc` does
    again = train(named(config_file, run.name))
    assert again.finished_before
    assert (again.steps, again.history, again.metrics) == (pair.steps, pair.history, pair.metrics)


@pytest.mark.slow
def test_fresh_starts_over(pair: TrainResult, config_file: Path) -> None:
    shutil.copytree(pair.run_dir, pair.run_dir.parent / "anew")
    short = train(named(config_file, "anew", "optim.steps=1"), fresh=True)
    assert (short.steps, short.finished_before) == (1, False)
    assert digest(short) != digest(pair)


def test_an_error_of_the_user_in_a_worker_is_raised_and_any_other_is_a_note(
    ray_local: None, tmp_path: Path
) -> None:
    queue = ReportQueue.remote()  # type: ignore[attr-defined]
    callback = FailureCallback(queue)
    callback.after_exception(None, {1: OSError("gone"), 0: OSError("gone")})
    assert ray.get(queue.take.remote(9.0)) == ["worker 0, 1 failed (OSError)"]
    with pytest.raises(DatasetError):
        callback.after_exception(None, {0: DatasetError("damaged")})
    refused = DatasetError("damaged")
    job = Job(TrainConfig(data={"shards": "s"}), RunDir(tmp_path), None, {}, 1)  # type: ignore[arg-type]
    assert _user_error(ControllerError(refused), job) is refused
    assert _user_error(ControllerError(OSError("gone")), job) is None
    full = _user_error(ControllerError(OSError(errno.ENOSPC, "full")), job)
    assert isinstance(full, StorageError)
    died = WorkerHealthCheckFailedError("died", failure=ray.exceptions.RayActorError())
    ended = _user_error(WorkerGroupError("died", {0: died}), job)
    assert isinstance(ended, RunError)
    assert ended.key == "workers.max_failures"
    assert _user_error(WorkerGroupError("bug", {0: died, 1: ValueError()}), job) is None


@pytest.mark.slow
def test_an_error_of_the_user_that_only_a_worker_can_find_ends_the_run_without_a_retry(
    config_file: Path, folder: Path
) -> None:
    """Ray would retry an error of a worker, but an error of the user occurs again in each attempt."""
    shards = folder / "broken"
    write_small_shards(shards, train=64, select=64)
    part = next((shards / "train").glob("*.parquet"))
    whole = part.read_bytes()
    at = whole.index(b"\xff\xd8\xff\xe0")  # the first JPEG
    part.write_bytes(whole[:at] + b"\x00" * 200 + whole[at + 200 :])
    told: list[Any] = []
    with pytest.raises(DatasetError) as refused:
        train(named(config_file, "broken", f"data.shards={shards}"), on_report=told.append)
    assert str(part) in str(refused.value.where)
    assert told == []
