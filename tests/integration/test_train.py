"""Training on real Ray gives the same weights with any number of workers, and after processes were killed."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file
from training_data import write_small_shards

from his2lip.config import dump_yaml, load
from his2lip.errors import DatasetError, RunError
from his2lip.models.encoder import DualEncoder
from his2lip.models.provenance import read_meta
from his2lip.training.config import TrainConfig
from his2lip.training.local import run_in_process
from his2lip.training.progress import StepReport
from his2lip.training.ray_train import TrainResult, train

# The workers cannot import this module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_local")

EPOCH = 5  # steps of one epoch
STEPS = 15  # steps of a run


@dataclass(frozen=True)
class Validator:
    """A validator with a fixed score, which writes the id of its process to a file."""

    pid_file: Path

    def __call__(self, model: DualEncoder) -> dict[str, float]:
        self.pid_file.write_text(str(os.getpid()))
        return {"macro_f1": 0.5}


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
        "log_every": 1,
        "storage": str(folder / "runs"),
    }
    path = folder / "train.yaml"
    path.write_text(dump_yaml(TrainConfig.model_validate(tree)))
    return path


def named(config_file: Path, name: str, *overrides: str) -> TrainConfig:
    return load(TrainConfig, config_file, [f"name={name}", *overrides])


def digest(result: TrainResult) -> str:
    return read_meta(result.last)["tensor_digest"]


@pytest.fixture(scope="module")
def whole(ray_local: None, config_file: Path) -> TrainResult:
    """The uninterrupted run."""
    return train(named(config_file, "whole"))


def test_run_writes_the_checkpoints_best_and_last_only(whole: TrainResult, config_file: Path) -> None:
    assert whole.steps == STEPS
    assert [epoch["step"] for epoch in whole.history] == [EPOCH, 2 * EPOCH, STEPS]
    assert whole.history[-1]["select/excess"] < whole.history[0]["select/excess"]
    assert {p.name for p in whole.run_dir.iterdir()} == {
        *("best", "last", "ray", "run.json", ".lock", "his2lip.log"),
    }
    assert sum(p.stat().st_size for p in (whole.run_dir / "ray").rglob("*")) < 10_000
    meta = read_meta(whole.best)
    assert TrainConfig.model_validate(meta["config"]).optim == named(config_file, "x").optim
    assert meta["vocabularies"]["tissue"][0] == "Alveoli"
    assert meta["terms"]["datasets"] == {"mihic-generated": "none, generated"}
    (seen,) = meta["training_data"]
    assert (seen["dataset"], seen["generated"], seen["organs"]) == ("mihic", True, ["lung"])
    assert {"data_digest", "captions_digest", "patch", "code_version", "step", "metrics"} <= meta.keys()
    assert not (whole.best / "resume").exists()


def test_the_loop_in_this_process_gives_bitwise_equal_weights(
    whole: TrainResult, config_file: Path, tmp_path: Path
) -> None:
    seen: list[Any] = []
    config = named(config_file, "here", "checkpoint.select_by=loss")
    outcome = run_in_process(config, report=seen.append, folder=tmp_path)
    torch.use_deterministic_algorithms(False)
    assert [m["step"] for m in seen] == [EPOCH, 2 * EPOCH, STEPS]
    assert outcome.metrics["select/loss"] == whole.history[-1]["select/loss"]
    assert read_meta(tmp_path / "best")["tensor_digest"] == read_meta(whole.best)["tensor_digest"]


@dataclass(frozen=True)
class EndedEarly:
    """A run of two workers that its driver ended after the first epoch, and the same run, resumed."""

    early: TrainResult
    reports: list[StepReport]  # of the first part
    later: TrainResult
    steps: list[int]  # reported in the second part


@pytest.fixture(scope="module")
def ended_early(ray_local: None, config_file: Path) -> EndedEarly:
    reports: list[StepReport] = []
    steps: list[int] = []

    def on_report(progress: StepReport) -> bool:
        reports.append(progress)
        return progress.kind == "epoch"

    config = named(config_file, "pair", "workers.num=2")
    early = train(config, on_report=on_report)
    later = train(config, on_report=lambda progress: steps.append(progress.step))
    return EndedEarly(early, reports, later, steps)


def test_a_run_that_the_driver_ends_early_stops_its_workers_and_is_resumed_later(
    ended_early: EndedEarly,
) -> None:
    assert ended_early.early.steps == ended_early.reports[-1].step == EPOCH
    assert min(ended_early.steps) > EPOCH
    assert (ended_early.later.steps, ended_early.later.finished_before) == (STEPS, False)


def test_two_workers_give_the_weights_of_one_worker(whole: TrainResult, ended_early: EndedEarly) -> None:
    pair = ended_early.later
    assert [epoch["step"] for epoch in pair.history] == [EPOCH, 2 * EPOCH, STEPS]
    assert pair.metrics["select/loss"] == pytest.approx(whole.metrics["select/loss"], abs=1e-5)
    one, two = load_file(whole.last / "model.safetensors"), load_file(pair.last / "model.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)  # measured: 4e-6


def test_a_run_whose_worker_was_killed_ends_with_the_uninterrupted_weights(
    whole: TrainResult, config_file: Path, tmp_path: Path
) -> None:
    moment = random.Random(7).randrange(EPOCH + 1, 2 * EPOCH)
    steps: list[int] = []
    notes: list[str] = []
    validator = Validator(tmp_path / "pid")

    def kill(progress: StepReport) -> None:
        steps.append(progress.step)
        if progress.step == moment and steps.count(moment) == 1:
            os.kill(int(validator.pid_file.read_text()), signal.SIGKILL)

    killed = train(named(config_file, "worker"), validator=validator, on_report=kill, on_note=notes.append)
    assert any("worker 0 failed" in note for note in notes), notes
    assert any(later <= earlier for earlier, later in itertools.pairwise(steps)), "no step was repeated"
    assert steps.count(1) == 1, "the run was started again, not resumed"
    assert digest(killed) == digest(whole)


def test_a_run_whose_driver_was_killed_ends_with_the_uninterrupted_weights(
    whole: TrainResult, config_file: Path
) -> None:
    moment = random.Random(8).randrange(EPOCH + 1, 2 * EPOCH)
    program = (
        "import sys\n"
        "from his2lip.config import load\n"
        "from his2lip.runtime import start_ray\n"
        "from his2lip.training.config import TrainConfig\n"
        "from his2lip.training.ray_train import train\n"
        "if __name__ == '__main__':\n"
        "    start_ray(num_cpus=2, object_store_memory=200 << 20)\n"
        "    config = load(TrainConfig, sys.argv[1], ['name=driver'])\n"
        "    train(config, on_report=lambda p: print(p.step, flush=True))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(config_file)],
        stdout=subprocess.PIPE, env=environment, text=True,
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.strip() == str(moment):
                driver.kill()
                break
    assert driver.returncode == -signal.SIGKILL
    run = Path(whole.run_dir).parent / "driver"
    assert EPOCH <= read_meta(run / "last")["step"] < STEPS
    steps: list[int] = []
    killed = train(named(config_file, "driver"), on_report=lambda progress: steps.append(progress.step))
    # The orphaned worker may run for seconds and do more steps. Then fewer steps are left.
    assert all(step > 3 for step in steps), "the run was started again, not resumed"
    assert digest(killed) == digest(whole)


def test_finished_run_is_not_run_again(whole: TrainResult, config_file: Path) -> None:
    notes: list[str] = []
    before = (whole.last / "model.safetensors").stat().st_mtime_ns
    again = train(named(config_file, "whole", "workers.num=2"), on_report=pytest.fail, on_note=notes.append)
    assert again.finished_before
    assert not whole.finished_before
    assert "was finished before" in notes[0]
    assert (again.metrics, again.steps) == (whole.metrics, whole.steps)
    assert (whole.last / "model.safetensors").stat().st_mtime_ns == before


def test_other_options_under_the_same_name_are_refused(whole: TrainResult, config_file: Path) -> None:
    with pytest.raises(RunError) as refused:
        train(named(config_file, "whole", "optim.lr=0.002"))
    assert (refused.value.key, refused.value.where) == ("name", whole.run_dir)
    assert "optim.lr" in refused.value.what


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_finished_run_whose_checkpoint_was_removed_is_refused(
    whole: TrainResult, config_file: Path, name: str
) -> None:
    run = whole.run_dir.parent / f"without-{name}"
    shutil.copytree(whole.run_dir, run)
    shutil.rmtree(run / name)
    with pytest.raises(RunError) as refused:
        train(named(config_file, run.name))
    assert (refused.value.key, refused.value.where) == (name, run / name)


@pytest.mark.slow
def test_fresh_starts_over(whole: TrainResult, config_file: Path) -> None:
    shutil.copytree(whole.run_dir, whole.run_dir.parent / "anew")
    short = train(named(config_file, "anew", "optim.steps=1"), fresh=True)
    assert (short.steps, short.finished_before) == (1, False)
    assert digest(short) != digest(whole)


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
