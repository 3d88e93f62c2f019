"""Sweeps on an object store, with real Ray Tune: resumed elsewhere, and equal to the undisturbed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from buckets import s3_on_loopback
from mlflow_content import children, runs_named
from training_data import write_small_shards

from his2lip.cli.tune import run_tune
from his2lip.config import dump_yaml, validate
from his2lip.errors import RunError
from his2lip.files import filesystem
from his2lip.models import load_model, read_meta
from his2lip.models.registered import meta_of
from his2lip.tracking import Tracker
from his2lip.tuning import sweep_directory
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.study import TrialRow, origin, rows
from his2lip.tuning.sweep import SweepResult, run_sweep
from his2lip.tuning.sweep_directory import study_at
from his2lip.tuning.trial import Objective, TrialReporter

pytestmark = pytest.mark.usefixtures("by_value")

PATIENCE_S = 300.0


def objective(params: dict[str, Any], report: TrialReporter) -> None:
    """Two reports, each with a new checkpoint; the largest x is the best."""
    for step in (1, 2):
        write_best(report, f"{step}", str(params["x"]))
        if report({"value": params["x"] + step}):
            return


def write_best(report: TrialReporter, name: str, text: str) -> None:
    """A checkpoint with one file, in place of that of before."""
    shutil.rmtree(report.folder / "best", ignore_errors=True)
    (report.folder / "best").mkdir(parents=True)
    (report.folder / "best" / name).write_text(text, encoding="utf-8")


def swept(storage: str, *, trials: int, objective: Objective = objective, **changes: Any) -> SweepResult:
    tree = {
        "name": "s", "train": {}, "metric": "value", "storage": storage, "trials": trials,
        "space": {"x": {"kind": "uniform", "low": 0.0, "high": 2.0}}, "points": [{"x": 0.25}],
        "max_concurrent": 1, "scheduler": {"kind": "none"}, "sampler": {"startup": 3}, **changes,
    }  # fmt: skip
    return run_sweep(validate(SweepConfig, tree), objective)


def files(place: str) -> set[str]:
    """All files or objects below a folder or URI, by their relative names."""
    from pyarrow.fs import FileSelector

    system, root = filesystem(place)
    found = system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{root}/") for info in found if info.is_file}


@pytest.mark.usefixtures("ray_local")
def test_a_sweep_in_a_bucket_is_resumed_from_it_and_ends_as_one_in_a_folder(tmp_path: Path) -> None:
    whole, bucket = swept(str(tmp_path / "runs"), trials=6), (tmp_path / "bucket").as_uri()
    first = swept(bucket, trials=3)
    assert not list((first.directory / "trials").glob("*")), "what trials wrote is only in the bucket"
    halves = swept(bucket, trials=6)
    ends = [[(r.number, r.state, r.params, r.value, r.reports) for r in x.trials] for x in (whole, halves)]
    assert ends[0] == ends[1]
    best = halves.best
    assert best is not None
    named = {"study.db", "driver", "sweep.yaml", "his2lip.log", f"trials/{best.name}/best.tar"}
    assert files(f"{bucket}/tune/s") == named
    assert halves.best_address == f"{bucket}/tune/s/trials/{best.name}/best.tar"
    assert halves.best_checkpoint is not None
    assert {p.name: p.read_text() for p in halves.best_checkpoint.iterdir()} == {"2": str(best.params["x"])}
    assert not (halves.directory / "ray").exists()
    again = swept(bucket, trials=6)
    assert again.finished_before
    assert again.trials == halves.trials


@pytest.mark.usefixtures("ray_local")
def test_a_sweep_that_another_command_takes_over_ends_at_the_next_checkpoint_which_is_not_stored(
    tmp_path: Path,
) -> None:
    place = tmp_path / "bucket/tune/s"

    def taken_over(params: dict[str, Any], report: TrialReporter) -> None:
        for step in (1, 2):
            if (report.number, step) == (1, 2):
                (place / "driver").write_text("another", encoding="utf-8")
            write_best(report, f"{step}", str(params["x"]))
            report({"value": params["x"] + step})

    with pytest.raises(RunError) as refused:
        swept((tmp_path / "bucket").as_uri(), trials=4, objective=taken_over)
    assert (refused.value.where, refused.value.key) == (place.as_uri(), "storage")
    assert [row.number for row in ended(place.as_uri())] == [0]
    stored = {name.split("-")[0]: name for name in files(place.as_uri()) if name.endswith("best.tar")}
    assert set(stored) == {"trials/0", "trials/1"}
    with tarfile.open(place / stored["trials/1"]) as archive:
        assert "./1" in archive.getnames(), "the checkpoint of the first report"


@pytest.mark.usefixtures("ray_local")
def test_on_a_cluster_the_log_in_the_bucket_has_what_trials_say_also_after_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials' processes write into no file. The store refuses what a stopped one writes after its end."""
    monkeypatch.setattr(sweep_directory, "is_local", lambda: False)
    place = tmp_path / "bucket/tune/s"

    def writes_late(params: dict[str, Any], report: TrialReporter) -> None:
        write_best(report, "1", str(params["x"]))
        if report({"value": -report.number}):
            (stored,) = place.glob(f"trials/{report.number}-*/best.tar")
            stored.unlink()
            stored.mkdir()
            write_best(report, "late", str(params["x"]))

    asha = {"scheduler": {"kind": "asha"}, "keep": 2}
    result = swept((tmp_path / "bucket").as_uri(), trials=2, objective=writes_late, **asha)
    result.sweep.store()  # as the command does at its end
    assert [row.state for row in result.trials] == ["finished", "stopped"]
    lines = (place / "his2lip.log").read_text(encoding="utf-8").splitlines()
    for said in ("trial 0 starts with", "trial 1 starts with", "2 trials to run"):
        assert len([line for line in lines if said in line]) == 1
    (late,) = (line for line in lines if "trial 1" in line and "is not stored" in line)
    assert "WARNING" in late
    assert f":{os.getpid()} " not in late, "of another process"


SWEEP = {
    "name": "small",
    "space": {"loss.tau": {"kind": "log", "low": 0.1, "high": 10.0}},
    "points": [{"loss.tau": 1.0}],
    "trials": 10,
    "max_concurrent": 1,
    "scheduler": {"kind": "none"},
}


def ended(place: str) -> list[TrialRow]:
    """The trials of a stored sweep that have a value."""
    with study_at(place) as url:
        table = rows(optuna.load_study(study_name=None, storage=url)) if url else []
    return [row for row in table if row.value is not None]


def outcome(table: list[TrialRow]) -> list[Any]:
    """The trials with a value in the order of their first tries."""
    retries = {row.number: row.retry_of for row in table}
    own = [row for row in table if row.value is not None]
    own.sort(key=lambda row: origin(row.number, retries))
    return [(row.state, row.params, row.value, row.reports) for row in own]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_local")
def test_after_kill_9_another_machine_completes_a_sweep_on_s3_as_the_undisturbed_one(
    tmp_path: Path, mlflow_store: str
) -> None:
    shards = write_small_shards(tmp_path / "shards", train=64, select=32)
    train = {"data": {"shards": shards, "batch_size": 32, "lanes": 4}, "optim": {"lr": 1e-3, "epochs": 2}}
    tree = {**SWEEP, "train": {**train, "workers": {"threads": 1}}}
    (tmp_path / "sweep.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    with s3_on_loopback("ihc") as bucket:

        def start(machine: Path) -> subprocess.Popen[str]:
            """`his2lip tune` with a home, a working folder and temporary files of its own."""
            (machine / "tmp").mkdir(parents=True)
            env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            env |= {"HOME": str(machine), "TMPDIR": str(machine / "tmp")}
            line = [sys.executable, "-m", "his2lip", "tune", str(tmp_path / "sweep.yaml")]
            line += [f"storage={bucket}/runs"]
            printed = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            return subprocess.Popen(line, cwd=machine, env=env, text=True, **printed)

        place, until = f"{bucket}/runs/tune/small", time.monotonic() + PATIENCE_S
        with start(tmp_path / "a") as first:
            while len(ended(place)) < 2 and first.poll() is None and time.monotonic() < until:
                time.sleep(0.5)
            first.kill()
        assert 2 <= len(ended(place)) < SWEEP["trials"]
        with start(tmp_path / "b") as second:
            said, _ = second.communicate(timeout=PATIENCE_S)
        assert second.returncode == 0, said
        tracker = Tracker.open(mlflow_store)
        (record,) = runs_named(tracker, "small")
        assert len(children(tracker, record)) == SWEEP["trials"]
        whole = run_tune(validate(SweepConfig, {**tree, "storage": str(tmp_path / "runs")}))

        with study_at(place) as url:
            found = rows(optuna.load_study(study_name="small", storage=url))
        assert outcome(found) == outcome(whole.trials)
        address = said.split("best checkpoint: ")[1].split()[0]
        assert whole.best_checkpoint is not None
        assert meta_of(address)["tensor_digest"] == read_meta(whole.best_checkpoint)["tensor_digest"]
        load_model(address)
        left = files(place)
        assert [name for name in left if name.startswith("trials/")] == [address.removeprefix(f"{place}/")]
        assert {"study.db", "sweep.yaml", "his2lip.log", "plots/sweep.html"} <= left
