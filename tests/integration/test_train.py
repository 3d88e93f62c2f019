"""Training on real Ray gives the same weights with any number of workers, and after processes were killed."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
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
from his2lip.models.provenance import is_checkpoint, read_meta
from his2lip.runtime import usable_cpus
from his2lip.training.config import TrainConfig
from his2lip.training.estimate import estimate_run
from his2lip.training.local import run_in_process
from his2lip.training.progress import StepReport
from his2lip.training.ray_train import (
    FailureCallback,
    TrainResult,
    _Mailbox,
    _user_error,
    _with_threads,
    train,
)
from his2lip.training.ray_worker import Job, ReportQueue
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import open_data

pytestmark = pytest.mark.usefixtures("ray_local")

EPOCH = 5  # steps of one epoch
STEPS = 15  # steps of a run
EVERY = 3  # steps between two checkpoints

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
        "checkpoint": {"every_steps": EVERY},
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
    """The uninterrupted run in this process, and the digests of its checkpoints by their steps."""

    run: RunDir
    saved: dict[int, str]


@pytest.fixture(scope="module")
def whole(config_file: Path, alone: tuple[str, ...]) -> Whole:
    config, saved = named(config_file, "whole", *alone), dict[int, str]()
    last = RunDir(Path(config.storage) / "train/whole").last

    def report(progress: StepReport) -> None:
        if is_checkpoint(last):
            meta = read_meta(last)
            saved[meta["step"]] = meta["tensor_digest"]

    return Whole(plain_run(config, report=report), saved)


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


def test_a_run_that_the_driver_ends_early_stops_after_that_epoch(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train's local mode: this process is the worker too. A slow test below has workers of their own."""
    in_this_process = ray.train.ScalingConfig(num_workers=0)
    monkeypatch.setattr("his2lip.training.ray_train._scaling", lambda job, say: in_this_process)
    files = logging.getLogger("his2lip.files")
    monkeypatch.setattr(files, "handlers", [*files.handlers])  # the worker adds one
    reports: list[StepReport] = []

    def on_report(progress: StepReport) -> bool:
        reports.append(progress)
        return progress.kind == "epoch"

    threads = torch.get_num_threads()
    try:
        early = train(named(config_file, "early", "data.loader=local"), on_report=on_report)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert early.steps == reports[-1].step == EPOCH
    assert not early.finished_before


@dataclass(frozen=True)
class Killed:
    """A `his2lip train` with one worker that was killed with -9."""

    shown: str  # on its terminal
    run: RunDir
    saved: dict[str, Any]  # his2lip.json of the last checkpoint, once no process of the run was left
    copy: Path  # of the run


@pytest.fixture(scope="module")
def killed(config_file: Path, folder: Path) -> Killed:
    """Kills the command in its second epoch. tests/faults kills workers, controllers and nodes too."""
    run = RunDir(folder / "runs/train/pair")
    environment = {k: v for k, v in os.environ.items() if k != "HIS2LIP_LOG" and not k.startswith("RAY_")}
    environment["MLFLOW_TRACKING_URI"] = new_store(folder)
    command = [sys.executable, "-m", "his2lip", "--verbose", "train", str(config_file), "name=pair"]
    with (
        (folder / "shown").open("w") as shown,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=shown, stderr=shown) as process,
    ):
        while process.poll() is None and EPOCH + 2 not in logged_steps(run.path):
            time.sleep(0.02)
        assert process.returncode is None, (folder / "shown").read_text()
        process.kill()  # step 6 is saved, and step 9 not yet
    assert process.returncode == -signal.SIGKILL
    while runs(workers(run.path)[-1]):  # the orphaned worker does more steps, until it notices
        time.sleep(0.05)
    copy = shutil.copytree(run.path, folder / "alone/train/pair")
    return Killed((folder / "shown").read_text(), run, read_meta(run.last), copy)


def workers(run: Path) -> list[int]:
    """The processes that were worker 0 of a run with one worker, in order."""
    return [pid for pid, said in logged(run) if said.startswith("worker 0 of 1 ")]


def runs(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a process that has ended has no words
    except OSError:
        return False


@dataclass(frozen=True)
class Resumed:
    """The killed run, resumed with two workers and finished."""

    result: TrainResult
    steps: list[int]  # that were reported
    listening: set[tuple[str, str]]  # process and address of every port that was listened on


@pytest.fixture(scope="module")
def resumed(ray_local: None, killed: Killed, config_file: Path) -> Resumed:
    steps: list[int] = []
    listening: set[tuple[str, str]] = set()

    def on_report(progress: StepReport) -> None:
        steps.append(progress.step)
        listening.update(listeners(os.getpid()))

    result = train(named(config_file, "pair", "workers.num=2"), on_report=on_report)
    return Resumed(result, steps, listening)


@pytest.fixture(scope="module")
def pair(resumed: Resumed) -> TrainResult:
    """The run, which is finished."""
    return resumed.result


def test_a_run_whose_driver_was_killed_ends_with_the_weights_of_one_that_was_not(
    killed: Killed, whole: Whole, config_file: Path, alone: tuple[str, ...]
) -> None:
    assert EPOCH < killed.saved["step"] <= 2 * EPOCH
    assert killed.saved["tensor_digest"] == whole.saved[killed.saved["step"]]
    steps: list[int] = []
    other = plain_run(named(config_file, "pair", *alone), report=lambda progress: steps.append(progress.step))
    assert other.path == killed.copy, "resumed in this process"
    assert min(steps) == killed.saved["step"] + 1
    assert digest(other) == digest(whole.run)
    assert read_meta(other.best)["tensor_digest"] == read_meta(whole.run.best)["tensor_digest"]
    assert history(other) == history(whole.run)


def test_a_verbose_command_shows_its_own_lines_and_those_of_its_workers(killed: Killed) -> None:
    first = workers(killed.run.path)[0]
    assert "run pair (id " in killed.shown
    assert re.search(rf"pid={first}.*worker 0 of 1 ", killed.shown), "Ray forwards the worker's lines"


def test_two_workers_resume_the_run_of_one_and_give_its_weights(
    whole: Whole, killed: Killed, resumed: Resumed
) -> None:
    assert resumed.steps[0] == killed.saved["step"] + 1, "the run was started again, not resumed"
    mine, other = history(RunDir(resumed.result.run_dir)), history(whole.run)
    assert mine[0] == other[0], "the epoch before the kill"
    assert [epoch["step"] for epoch in mine] == [epoch["step"] for epoch in other]
    for one, two in zip(other, mine, strict=True):
        assert two["select/loss"] == pytest.approx(one["select/loss"], abs=1e-5)
    assert_close(resumed.result.last, whole.run.last)


def assert_close(two: Path, one: Path) -> None:
    """The weights of two checkpoints, of which two workers trained the first."""
    found, wanted = (load_file(last / "model.safetensors") for last in (two, one))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_the_log_of_a_run_has_the_lines_of_its_driver_and_of_each_worker(resumed: Resumed) -> None:
    lines = logged(resumed.result.run_dir)
    drivers = [pid for pid, said in lines if said.startswith("run pair (id ")]
    assert drivers[-1] == os.getpid()
    first, second = (
        next(pid for pid, said in lines if said.startswith(f"worker {rank} of 2 ")) for rank in (0, 1)
    )
    assert len({*drivers, first, second}) == 4, "two commands and two workers"
    assert any("epoch 3" in said for pid, said in lines if pid == first)


def test_no_process_of_a_training_run_listens_on_an_external_address(resumed: Resumed) -> None:
    names = {name for name, _ in resumed.listening}
    assert {"gcs_server", "raylet"} <= names
    assert any("Train" in name for name in names), "the workers of Ray were seen too"
    assert not any("Preempt" in name for name in names), "nobody takes this machine away"
    assert {address for _, address in resumed.listening} == {"127.0.0.1"}, resumed.listening


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
    assert saved.data.decode_threads == max(1, usable_cpus() // 2), "what auto stood for with two workers"
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
    config, shards, _ = open_data(named(config_file, "next", "seed=7"))
    found = estimate_run(config, shards)
    assert found.steps == STEPS
    assert found.based_on is not None, "the latest finished run: of this or of another test"
    base = RunDir(pair.run_dir.parent / found.based_on)
    assert found.seconds is not None
    assert 0.05 < found.seconds < 300
    sizes = [p.stat().st_size for place in (base.best, base.last) for p in place.rglob("*") if p.is_file()]
    assert found.bytes == sum(sizes)
    other = named(config_file, "next", "data.batch_size=32")
    assert estimate_run(other, shards).based_on is None


@pytest.mark.slow
def test_a_run_of_two_workers_is_resumed_on_two_and_ends_with_the_weights_of_one(
    ray_local: None, whole: Whole, config_file: Path
) -> None:
    config = named(config_file, "two", "workers.num=2")
    early = train(config, on_report=lambda progress: progress.kind == "epoch")
    assert (early.steps, early.finished_before) == (EPOCH, False), "the workers stop after that epoch"
    done = train(config)
    assert (done.steps, done.finished_before) == (STEPS, False)
    assert_close(done.last, whole.run.last)


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


def test_a_worker_knows_when_the_driver_has_recorded_its_reports_and_an_epoch_is_passed_on_once(
    ray_local: None,
) -> None:
    queue = ReportQueue.remote()  # type: ignore[attr-defined]
    told: list[StepReport] = []
    mailbox = _Mailbox(queue, lambda progress: told.append(progress) or True, print)
    ray.get(queue.recorded.remote(), timeout=20)  # nothing has been reported
    step, epoch = (StepReport(kind, 5, 9, 1, {}) for kind in ("step", "epoch"))
    puts = [queue.put.remote(progress) for progress in (step, epoch)]
    recorded = queue.recorded.remote(*puts)
    ray.get(puts)
    mailbox.deliver(wait_s=9.0)
    assert told == [step, epoch]
    assert not ray.wait([recorded], timeout=0.5)[0], (
        "the driver has taken them, and may die before it is done"
    )
    mailbox.deliver(wait_s=0.0)
    ray.get(recorded, timeout=20)
    ray.get([queue.put.remote(progress) for progress in (step, epoch)])  # by workers that were started again
    mailbox.deliver(wait_s=9.0)
    assert told == [step, epoch, step]
    assert ray.get(queue.stops.remote(5), timeout=20) is True
    assert mailbox.stopped
    ray.kill(queue)


def test_a_report_that_ends_a_run_at_its_last_step_leaves_it_finished(ray_local: None) -> None:
    queue = ReportQueue.remote()  # type: ignore[attr-defined]
    mailbox = _Mailbox(queue, lambda progress: True, print)
    ray.get(queue.put.remote(StepReport("epoch", 9, 9, 1, {})))
    mailbox.deliver(wait_s=9.0)
    assert not mailbox.stopped
    ray.kill(queue)


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
