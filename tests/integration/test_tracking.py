"""What the drivers write to MLflow, read from a real MLflow server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import optuna
import pytest
from mlflow_content import children, content, curve, stored, write_all
from mlflow_stores import new_store, without_patience
from proxy import Mode, Proxy
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.cli.tune import record_sweep
from his2lip.config import recorded, validate
from his2lip.errors import RunError, TrackingError
from his2lip.tracking import sender
from his2lip.tracking.outbox import SUFFIX, Outbox
from his2lip.tracking.run import CODE_VERSION
from his2lip.tracking.store import Tracker
from his2lip.tracking.store_run import BENCHMARK_RUN, PATH, PLACE, RUN_ID, TRAINING_RUN, WEIGHTS
from his2lip.training.config import TrainConfig
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.study import best_rows, open_study, rows
from his2lip.tuning.sweep import SweepResult
from his2lip.tuning.sweep_directory import SweepDir

SCORES = {"weak": {"mihic": 0.2, "mist": 0.3}, "strong": {"mihic": 0.9, "mist": 0.6}}


@pytest.fixture
def tracker(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracker]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    yield Tracker.open()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the process's own default again


def _checkpoint_meta() -> dict[str, object]:
    return {"tensor_digest": "a" * 64, "config": {"optim": {"lr": 1e-3}}}


def test_a_training_run_is_stored_with_its_curve_its_data_and_its_checkpoint(
    tracker: Tracker, mlflow_server: str, tmp_path: Path
) -> None:
    config = {"optim": {"lr": 1e-3}, "name": "first"}
    with tracker.run("his2lip-train", "first", config, tags={RUN_ID: "train-1"}, beside=tmp_path) as run:
        run.dataset("mihic", digest="d" * 64, uri="s3://b/mihic", context="training")
        for step in (1, 2, 3):
            run.metrics({"train/loss": 1.0 / step, "select/macro_f1": float("nan")}, step=step)
        model = run.checkpoint(tmp_path, "first", _checkpoint_meta())
        run.model_metrics(model, {"select/macro_f1": 0.8})

    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("his2lip-train")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.001"
    assert curve(tracker, found, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("mihic", "training")
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.tags[WEIGHTS] == "a" * 64
    assert model.params["optim.lr"] == "0.001"
    assert {m.key: m.value for m in model.metrics} == {"select/macro_f1": 0.8}
    assert "config.json" in [a.path for a in client.list_artifacts(found.info.run_id)]


def test_a_resumed_run_continues_its_mlflow_run_and_repeated_steps_are_points_once(
    tracker: Tracker, tmp_path: Path
) -> None:
    for steps in ((1, 2, 3), (2, 3, 4)):  # the first call was killed after a checkpoint at step 1
        with tracker.run(
            "his2lip-train", "again", {"a": 1}, tags={RUN_ID: "train-2"}, beside=tmp_path
        ) as run:
            for step in steps:
                run.metrics({"train/loss": 1.0 / step}, step=step)
            run.metrics({"best": float(steps[-1])})
    (found,) = stored(tracker, "train-2")
    assert curve(tracker, found, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert found.data.metrics["best"] == 4.0


def test_a_finished_run_that_is_reported_again_keeps_the_time_of_its_end(
    tracker: Tracker, tmp_path: Path
) -> None:
    """Else MLflow would show the days until then as its duration."""
    ends = []
    for loss in (0.5, 0.5, 0.25):
        with tracker.run("his2lip-train", "over", {}, tags={RUN_ID: "over"}, beside=tmp_path) as run:
            run.metrics({"loss": loss})
        ends.append(stored(tracker, "over")[0].info)
    assert [end.status for end in ends] == ["FINISHED"] * 3
    assert ends[0].end_time == ends[1].end_time < ends[2].end_time


def test_pages_and_columns_that_are_written_again_leave_the_end_of_a_benchmark(
    tracker: Tracker, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    ends = []
    for text in ("old", "new"):
        page.write_text(text)
        with tracker.run("his2lip-benchmark", "page", {}, tags={RUN_ID: "page"}, beside=tmp_path) as run:
            run.metrics({"mean": 0.5})
            run.artifact(page)
            run.table([], sort="mean")
        ends.append(stored(tracker, "page")[0].info)
    assert [end.status for end in ends] == ["FINISHED"] * 2
    assert ends[0].end_time == ends[1].end_time
    shown = mlflow.artifacts.load_text(f"{ends[1].artifact_uri}/report.html")
    assert shown == "new"


def test_a_run_without_its_outbox_is_continued_without_points_that_it_has(
    tracker: Tracker, tmp_path: Path
) -> None:
    for steps in ((1, 2), (2, 3)):
        with tracker.run("his2lip-train", "bare", {"a": 1}, tags={RUN_ID: "bare"}, beside=tmp_path) as run:
            for step in steps:
                run.metrics({"train/loss": 1.0 / step}, step=step)
        next(tmp_path.glob(f"bare.*{SUFFIX}")).unlink()
    (found,) = stored(tracker, "bare")
    assert curve(tracker, found, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_a_fresh_start_makes_a_new_mlflow_run_that_later_calls_continue(
    tracker: Tracker, tmp_path: Path
) -> None:
    for fresh in (False, True, False):
        with tracker.run(
            "his2lip-tune", "anew", {}, tags={RUN_ID: "anew"}, beside=tmp_path, fresh=fresh
        ) as run:
            run.trial("anew/0", "trial 0", params={}, metrics={"f1": 0.1})
    (found,) = stored(tracker, "anew")  # the run whose files --fresh removed was deleted
    assert len(children(tracker, found)) == 1


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_a_sweep_leaves_the_run_of_the_same_sweep_in_another_storage_alone(
    tracker: Tracker, tmp_path: Path, fresh: bool, lost: bool
) -> None:
    """The second storage's sweep would delete the trials of the first, and with --fresh its run.

    So would the first, where it has lost its outbox and the latest run of the same inputs is the second's.
    """
    name = f"shared-{fresh}-{lost}"
    for storage, value, again in (("a", 0.1, False), ("b'\"", 0.2, fresh), ("a", 0.1, False)):
        beside = tmp_path / storage
        beside.mkdir(exist_ok=True)
        for outbox in beside.glob(f"*{SUFFIX}"):
            if lost:
                outbox.unlink()
        with tracker.run("his2lip-tune", name, {}, tags={RUN_ID: name}, beside=beside, fresh=again) as run:
            run.keep_children([storage])
            run.trial(storage, "trial 0", params={}, metrics={"f1": value})
            run.metrics({"best/f1": value})
    found = {run.data.metrics["best/f1"]: children(tracker, run) for run in stored(tracker, name)}
    assert {best: [child.data.metrics for child in trials] for best, trials in found.items()} == {
        0.1: [{"f1": 0.1}],
        0.2: [{"f1": 0.2}],
    }


def test_a_benchmark_names_the_training_of_its_own_storage_among_those_of_equal_weights(
    tracker: Tracker, tmp_path: Path
) -> None:
    """Also after `--fresh`: MLflow sets no tag on the replaced run, and the benchmark was never sent."""
    meta = {"tensor_digest": "f" * 64, "config": {}}
    for storage, fresh in (("a", False), ("b", False), ("a", True)):
        beside = tmp_path / storage
        beside.mkdir(exist_ok=True)
        tags = {RUN_ID: "equal"}
        with tracker.run("his2lip-train", "equal", {}, tags=tags, beside=beside, fresh=fresh) as run:
            run.model_metrics(run.checkpoint(beside / "best", "equal", meta), {"f1": 0.5})
    trained = {Path(run.data.tags[PLACE]).name: run.info.run_id for run in stored(tracker, "equal")}
    assert sorted(trained) == ["a", "b"]
    for storage, training in trained.items():
        beside = tmp_path / storage
        with tracker.run("equals", storage, {}, tags={RUN_ID: f"equal-{storage}"}, beside=beside) as run:
            model = run.model("equal", digest="f" * 64, path=str(beside / "best"))
            run.model_run("row", model=model, metrics={}, params={}, headline=[], note="")
        (benchmark,) = stored(tracker, f"equal-{storage}")
        (row,) = children(tracker, benchmark)
        assert row.info.status == "FINISHED"
        assert row.data.tags[TRAINING_RUN] == training
    named = [tracker.client.get_run(training).data.tags[BENCHMARK_RUN] for training in trained.values()]
    assert len(set(named)) == 2, "each training run names the benchmark of its storage"


def test_a_sweep_on_an_object_store_continues_its_run_from_another_machine(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine has one folder with the outboxes of all object stores; another store has other files."""
    calls = (
        ("one", "s3://a", False),
        ("two", "s3://a", False),
        ("two", "s3://b", False),
        ("one", "s3://a", True),
    )
    counts = []
    for number, (machine, storage, fresh) in enumerate(calls):
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / machine)
        beside = f"{storage}/tune"
        with tracker.run("his2lip-tune", "far", {}, tags={RUN_ID: "far"}, beside=beside, fresh=fresh) as run:
            run.trial(f"far/{number}", f"trial {number}", params={}, metrics={"f1": 0.1})
        counts.append(sorted(len(children(tracker, found)) for found in stored(tracker, "far")))
    assert counts == [[1], [2], [1, 2], [1, 1]]


def test_a_sweep_that_is_repeated_without_its_folder_leaves_no_trial_of_the_first_in_mlflow(
    tracker: Tracker, tmp_path: Path
) -> None:
    tree = {"name": "again", "train": {}, "space": {"x": {"kind": "uniform", "low": 0.0, "high": 1.0}}}
    config = validate(SweepConfig, tree)
    for values in ((0.1, 0.2, 0.3), (0.4, 0.5)):
        folder = tmp_path / "runs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        url = f"sqlite:///{folder}/study.db"
        study = open_study(config, url, inputs={})
        for value in values:
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
            trial.set_user_attr("code_version", f"code of {len(values)}")
            trial.set_user_attr("metrics", json.dumps({"select/macro_f1": value}))
            study.tell(trial, value)
        best = best_rows(rows(study), "max", 1)[0]
        found = SweepResult("again", SweepDir(folder), url, rows(study), best, False)
        with tracker.run("his2lip-tune", "again", {}, tags={RUN_ID: "again"}, beside=folder) as run:
            record_sweep(run, config, found)
    (sweep,) = stored(tracker, "again")
    trials = children(tracker, sweep)
    assert {child.info.run_name for child in trials} == {"trial 0", "trial 1"}
    assert {child.data.tags[CODE_VERSION] for child in trials} == {"code of 2"}
    assert sweep.data.metrics["best/select/macro_f1"] == 0.5


def test_artifacts_are_stored_beside_a_sqlite_store(tmp_path: Path) -> None:
    tracker = Tracker.open(new_store(tmp_path))
    experiment = tracker.client.get_experiment(tracker.experiment("his2lip-train"))
    assert experiment.artifact_location == (tmp_path / "artifacts" / "his2lip-train").as_uri()


def test_a_run_that_raises_is_marked_failed(tracker: Tracker, tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        tracker.run("his2lip-train", "broken", {}, tags={RUN_ID: "b"}, beside=tmp_path),
    ):
        raise ZeroDivisionError
    assert stored(tracker, "b")[0].info.status == "FAILED"


def test_two_commands_cannot_write_one_run(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.run("his2lip-train", "two", {}, tags={RUN_ID: "two"}, beside=tmp_path) as run:
        with (
            pytest.raises(RunError) as refused,
            tracker.run("his2lip-train", "two", {}, tags={RUN_ID: "two"}, beside=tmp_path),
        ):
            pass
        assert (refused.value.key, refused.value.where) == ("name", run.outbox.path)


def test_the_trials_of_a_sweep_are_its_child_runs_and_each_is_written_once(
    tracker: Tracker, tmp_path: Path
) -> None:
    for upto in (2, 4):
        with tracker.run("his2lip-tune", "sweep", {}, tags={RUN_ID: "sweep-1"}, beside=tmp_path) as run:
            for number in range(upto):
                run.trial(f"sweep/{number}", f"trial {number}", params={"tau": number}, metrics={"f1": 0.1})
    (found,) = stored(tracker, "sweep-1")
    assert sorted(c.data.params["tau"] for c in children(tracker, found)) == ["0", "1", "2", "3"]


def test_child_runs_that_are_not_part_of_the_present_result_are_deleted(
    tracker: Tracker, tmp_path: Path
) -> None:
    for ids in ("ab", "bc", "ab"):  # `a` comes back
        with tracker.run("his2lip-tune", "repeated", {}, tags={RUN_ID: "repeated"}, beside=tmp_path) as run:
            run.keep_children(ids)
            for child in ids:
                run.trial(child, child, params={}, metrics={"f1": 0.1}, code_version="1")
        (found,) = stored(tracker, "repeated")
        assert sorted(c.info.run_name for c in children(tracker, found)) == list(ids)


def test_a_deleted_experiment_is_restored_by_the_next_run(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.run("his2lip-deleted", "first", {}, tags={RUN_ID: "deleted"}, beside=tmp_path):
        pass
    (first,) = stored(tracker, "deleted")
    tracker.client.delete_experiment(first.info.experiment_id)
    with tracker.run("his2lip-deleted", "second", {}, tags={RUN_ID: "later"}, beside=tmp_path) as again:
        again.metrics({"f1": 0.5})
    (second,) = stored(tracker, "later")
    assert second.info.experiment_id == first.info.experiment_id
    assert second.data.metrics == {"f1": 0.5}


@pytest.mark.parametrize("copied", [False, True])
def test_a_store_whose_folder_was_moved_or_copied_finds_its_artifacts_there(
    tmp_path: Path, copied: bool
) -> None:
    old, new = tmp_path / "old place", tmp_path / "new"
    tracker = Tracker.open(new_store(old))
    best = old / "train" / "first" / "best"
    best.mkdir(parents=True)
    with tracker.run("his2lip-train", "first", {"a": 1}, tags={RUN_ID: "moved"}, beside=tmp_path) as run:
        run.checkpoint(best, "first", {"tensor_digest": "a" * 64})
    (first,) = stored(tracker, "moved")
    tracker.client._tracking_client.store.engine.dispose()
    shutil.copytree(old, new) if copied else old.rename(new)

    moved = Tracker.open(f"sqlite:///{new}/mlflow.db")
    assert moved.client.get_run(first.info.run_id).info.artifact_uri.startswith((new / "artifacts").as_uri())
    assert [a.path for a in moved.client.list_artifacts(first.info.run_id)] == ["config.json"]
    (model,) = moved.client.search_logged_models([first.info.experiment_id])
    assert model.tags[PATH] == str(new / "train" / "first" / "best")
    with moved.run("his2lip-train", "second", {"a": 2}, tags={RUN_ID: "later"}, beside=tmp_path):
        pass
    assert old.exists() == copied
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_a_store_that_is_reached_through_a_link_does_not_count_as_moved(tmp_path: Path) -> None:
    folder, link = tmp_path / "store", tmp_path / "link"
    uri = new_store(folder)
    before = Tracker.open(uri).experiment("his2lip-train")
    link.symlink_to(folder)
    Tracker.open(f"sqlite:///{link}/mlflow.db")
    location = Tracker.open(uri).client.get_experiment(before).artifact_location
    assert location == (folder / "artifacts" / "his2lip-train").as_uri()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_secrets_in_addresses_are_not_stored(tracker: Tracker, tmp_path: Path) -> None:
    secret = "s3://KEY:SECRET@bucket/x?secret_key=SECRET"
    config = recorded(TrainConfig(data={"shards": secret}))  # type: ignore[arg-type]
    with tracker.run("his2lip-train", "secret", config, tags={RUN_ID: "secret"}, beside=tmp_path) as run:
        run.dataset("x", digest="d" * 64, uri=secret, context="training")
        run.model("secret", digest="b" * 64, path=secret, params={"a": secret})
    (found,) = stored(tracker, "secret")
    assert "SECRET" not in run.outbox.path.read_text()
    filters = f"tags.`{WEIGHTS}` = '{'b' * 64}'"
    (logged,) = tracker.client.search_logged_models([found.info.experiment_id], filters)
    assert "SECRET" not in f"{logged.tags} {logged.params} {found.data.params}"
    config = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/config.json")
    (data,) = found.inputs.dataset_inputs
    assert found.data.params["data.shards"] == "s3://KEY:***@bucket/x?secret_key=***"
    for text in (config, data.dataset.source):
        assert "bucket" in text
        assert "SECRET" not in text


def test_logged_models_can_be_ranked_by_their_figure_on_each_dataset(
    tracker: Tracker, tmp_path: Path
) -> None:
    for _ in range(2):  # the second time, all grid cells are written already
        # An experiment of its own: other tests log models into the same store.
        with tracker.run("ranked", "zero-shot", {}, tags={RUN_ID: "grid-1"}, beside=tmp_path) as run:
            for name, scores in SCORES.items():
                model = run.model(name, digest=name * 8)
                for dataset, value in scores.items():
                    run.cell(
                        f"{name}/{dataset}", model=model, scored_as=dataset, digest="e" * 64,
                        metrics={"macro_f1": value}, params={"dataset": dataset},
                        order_depends_on_prompts=dataset == "mist",
                    )  # fmt: skip
    (grid,) = stored(tracker, "grid-1")
    assert len(children(tracker, grid)) == 4
    for dataset in ("mihic", "mist"):
        ranked = tracker.client.search_logged_models(
            [grid.info.experiment_id],
            order_by=[{"field_name": "metrics.macro_f1", "dataset_name": dataset, "ascending": False}],
        )
        assert [m.name for m in ranked] == ["strong", "weak"]
    strong = next(m for m in ranked if m.name == "strong")
    scored = {(m.dataset_name, m.key): m.value for m in strong.metrics}
    assert scored == {("mihic", "macro_f1"): 0.9, ("mist", "macro_f1"): 0.6}
    marked = [cell for cell in children(tracker, grid) if "his2lip.order" in cell.data.tags]
    assert {cell.data.params["dataset"] for cell in marked} == {"mist"}


def test_two_processes_can_open_a_new_store_at_the_same_time(tmp_path: Path) -> None:
    script = "from his2lip.tracking import Tracker\nTracker.open().experiment('his2lip-train')"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/deep/mlflow.db"}
    started = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(2)]
    assert [process.wait(timeout=240) for process in started] == [0, 0]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://store", "https://[::1", "two\nlines"])
def test_a_store_that_cannot_be_used_is_reported_in_one_sentence(uri: str) -> None:
    with pytest.raises(TrackingError) as caught:
        Tracker.open(uri, needed=uri.startswith("http://"))  # a run does not need a server that is away
    assert (caught.value.key, caught.value.where) == ("MLFLOW_TRACKING_URI", uri)
    assert "\n" not in str(caught.value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between two contacts, and no retries inside of MLflow's client."""
    monkeypatch.setattr(sender, "_WAITS_S", (0.05,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.parametrize(("mode", "at"), [("away", 3), ("away", 25), ("500", 10), ("lost", 10), ("lost", 28)])
def test_a_server_that_is_away_for_a_while_ends_with_all_records_once(
    mlflow_server: str, tracker: Tracker, impatient: None, tmp_path: Path, mode: Mode, at: int
) -> None:
    whole, name = f"whole-{mode}-{at}", f"{mode}-{at}"
    with tracker.run(f"his2lip-{whole}", "x", {"a": 1}, tags={RUN_ID: whole}, beside=tmp_path) as run:
        write_all(run)
    with Proxy(mlflow_server).running() as proxy:
        flaky = Tracker.open(proxy.url)
        with flaky.run(f"his2lip-{name}", "x", {"a": 1}, tags={RUN_ID: name}, beside=tmp_path) as run:
            write_all(run, slice(at))
            run.sender.finish_sending(20)
            proxy.mode = mode
            write_all(run, slice(at, None))
            while proxy.refused < 3:
                run.sender.join(0.01)
            assert run.sender.is_alive()
            proxy.mode = "up"
    assert content(tracker, name) == content(tracker, whole)


def test_what_a_server_that_stays_away_did_not_get_is_sent_by_track_sync(
    mlflow_server: str, tracker: Tracker, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(mlflow_server).running() as proxy:
        proxy.mode = "away"
        with pytest.raises(TrackingError):
            Tracker.open(proxy.url)
        away = Tracker.open(proxy.url, needed=False)
        monkeypatch.setattr("his2lip.tracking.store._PATIENCE_S", 0.2)
        with away.run("his2lip-away", "x", {"a": 1}, tags={RUN_ID: "gone"}, beside=tmp_path / "train") as run:
            write_all(run)
        monkeypatch.setattr("his2lip.tracking.store._PATIENCE_S", 60)
        assert stored(tracker, "gone") == []
        assert run.sender.left == len(Outbox.read(run.outbox.path).records) > 30
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        sync = ["track", "sync", "--storage", str(tmp_path)]
        refused = CliRunner().invoke(app, sync)
        assert isinstance(refused.exception, TrackingError)
        proxy.mode = "up"
        for sent in (run.sender.left, 0):
            done = CliRunner().invoke(app, sync)
            assert done.exit_code == 0
            assert f"{sent} records sent to {proxy.url}" in done.output
    with tracker.run("his2lip-here", "x", {"a": 1}, tags={RUN_ID: "here"}, beside=tmp_path) as run:
        write_all(run)
    assert content(tracker, "gone") == content(tracker, "here")


@pytest.mark.parametrize("resumed", [False, True])
def test_track_sync_ends_the_run_of_a_killed_command(tracker: Tracker, tmp_path: Path, resumed: bool) -> None:
    name = f"killed-{resumed}"
    script = f"""
import os, signal
from his2lip.tracking.store import Tracker
with Tracker.open().run(
    "his2lip-train", {name!r}, {{}}, tags={{"his2lip.run_id": {name!r}}}, beside={str(tmp_path / "train")!r}
) as run:
    run.metrics({{"loss": 0.5}}, step=1)
    run.sender.finish_sending(20)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "train").mkdir()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    (begun,) = stored(tracker, name)
    assert begun.info.status == "RUNNING"
    for _ in range(2):
        done = CliRunner().invoke(app, ["track", "sync", "--storage", str(tmp_path)])
        assert done.exit_code == 0, done.output
        (ended,) = stored(tracker, name)
        assert (ended.info.status, ended.info.end_time) == (
            "KILLED",
            tracker.client.get_metric_history(ended.info.run_id, "loss")[0].timestamp,
        )
    if resumed:
        with tracker.run("his2lip-train", name, {}, tags={RUN_ID: name}, beside=tmp_path / "train") as run:
            run.metrics({"loss": 0.25}, step=2)
        (ended,) = stored(tracker, name)
        assert ended.info.status == "FINISHED"
        assert curve(tracker, ended, "loss") == [(1, 0.5), (2, 0.25)]


def test_a_sqlite_store_that_another_process_locks_stops_no_work(
    impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = without_patience(Tracker.open(new_store(tmp_path)))
    for name in ("free", "locked"):
        other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
        # In an experiment of its own, where no other run has logged the model.
        with tracker.run(f"his2lip-{name}", name, {"a": 1}, tags={RUN_ID: name}, beside=tmp_path) as run:
            run.sender.finish_sending(20)
            if name == "locked":
                other.execute("BEGIN EXCLUSIVE")
            write_all(run)
            while name == "locked" and run.sender.trouble is None:
                run.sender.join(0.01)
            other.close()
    assert content(tracker, "locked") == content(tracker, "free")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
