"""What the drivers write to MLflow, read from a real MLflow server on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import optuna
import pytest

from his2lip.cli.tune import record_sweep
from his2lip.config import recorded, validate
from his2lip.errors import TrackingError
from his2lip.tracking.run import CODE_VERSION, PARENT, PATH, RUN_ID, WEIGHTS
from his2lip.tracking.store import Tracker
from his2lip.training.config import TrainConfig
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.study import best_rows, open_study, rows
from his2lip.tuning.sweep import SweepResult

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
    with tracker.run("his2lip-train", "first", config, tags={RUN_ID: "train-1"}) as run:
        run.dataset("mihic", digest="d" * 64, uri="s3://b/mihic", context="training")
        for step in (1, 2, 3):
            run.metrics({"train/loss": 1.0 / step, "select/macro_f1": float("nan")}, step=step)
        model_id = run.checkpoint(tmp_path, "first", _checkpoint_meta())
        run.model_metrics(model_id, {"select/macro_f1": 0.8})

    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("his2lip-train")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.001"
    assert [m.value for m in client.get_metric_history(found.info.run_id, "train/loss")] == [1.0, 0.5, 1 / 3]
    assert "select/macro_f1" in found.data.metrics  # the finite value, not the NaN
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("mihic", "training")
    model = client.get_logged_model(model_id)
    assert model.tags[WEIGHTS] == "a" * 64
    assert model.params["optim.lr"] == "0.001"
    assert {m.key: m.value for m in model.metrics} == {"select/macro_f1": 0.8}
    assert "config.json" in [a.path for a in client.list_artifacts(found.info.run_id)]


def test_a_resumed_run_continues_its_mlflow_run(tracker: Tracker) -> None:
    ids = []
    for step in (1, 2):
        with tracker.run("his2lip-train", "again", {"a": 1}, tags={RUN_ID: "train-2"}) as run:
            run.metrics({"train/loss": 1.0}, step=step)
            ids.append(run.run_id)
    assert ids[0] == ids[1]
    assert len(tracker.client.get_metric_history(ids[0], "train/loss")) == 2


def test_a_fresh_start_makes_a_new_mlflow_run_that_later_calls_continue(tracker: Tracker) -> None:
    ids = []
    for fresh in (False, True, False):
        with tracker.run("his2lip-tune", "anew", {}, tags={RUN_ID: "anew"}, fresh=fresh) as run:
            assert run.children() == ({"anew/0"} if len(ids) == 2 else set())
            run.trial("anew/0", "trial 0", params={}, metrics={"f1": 0.1})
            ids.append(run.run_id)
    assert ids[0] != ids[1] == ids[2]
    left = tracker.client.search_runs([run.experiment_id], f"tags.`{PARENT}` = '{ids[0]}'")
    assert list(left) == [], "trials of a sweep whose files --fresh removed"
    stages = [tracker.client.get_run(run_id).info.lifecycle_stage for run_id in ids[:2]]
    assert stages == ["deleted", "active"]


def test_a_sweep_that_is_repeated_without_its_folder_leaves_no_trial_of_the_first_in_mlflow(
    tracker: Tracker, tmp_path: Path
) -> None:
    tree = {"name": "again", "train": {}, "space": {"x": {"kind": "uniform", "low": 0.0, "high": 1.0}}}
    config = validate(SweepConfig, tree)
    for values in ((0.1, 0.2, 0.3), (0.4, 0.5)):
        folder = tmp_path / str(len(values))
        folder.mkdir()
        url = f"sqlite:///{folder}/study.db"
        study = open_study(config, url, inputs={})
        for value in values:
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
            trial.set_user_attr("code_version", f"code of {len(values)}")
            study.tell(trial, value)
        found = SweepResult("again", folder, url, rows(study), best_rows(rows(study), "max", 1)[0], False)
        with tracker.run("his2lip-tune", "again", {}, tags={RUN_ID: "again"}) as run:
            record_sweep(run, config, found)
    children = tracker.client.search_runs([run.experiment_id], f"tags.`{PARENT}` = '{run.run_id}'")
    assert {child.info.run_name for child in children} == {"trial 0", "trial 1"}
    assert {child.data.tags[CODE_VERSION] for child in children} == {"code of 2"}
    assert tracker.client.get_run(run.run_id).data.metrics["best/select/macro_f1"] == 0.5


def test_a_run_whose_store_is_lost_is_not_marked_finished(tracker: Tracker) -> None:
    with (
        pytest.raises(TrackingError) as refused,
        tracker.run("his2lip-train", "lost", {}, tags={RUN_ID: "lost"}) as run,
    ):
        tracker.client.log_metric("no-such-run", "a", 1.0)
    assert refused.value.where == tracker.uri
    assert tracker.client.get_run(run.run_id).info.status == "FAILED"


def test_artifacts_are_stored_beside_a_sqlite_store(tmp_path: Path) -> None:
    tracker = Tracker.open(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = tracker.client.get_experiment(tracker._experiment("his2lip-train"))
    assert experiment.artifact_location == (tmp_path / "artifacts" / "his2lip-train").as_uri()


def test_a_run_that_raises_is_marked_failed(tracker: Tracker) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        tracker.run("his2lip-train", "broken", {}, tags={RUN_ID: "b"}) as run,
    ):
        raise ZeroDivisionError
    assert tracker.client.get_run(run.run_id).info.status == "FAILED"


def test_the_trials_of_a_sweep_are_its_child_runs_and_each_is_written_once(tracker: Tracker) -> None:
    for upto in (2, 4):
        with tracker.run("his2lip-tune", "sweep", {}, tags={RUN_ID: "sweep-1"}) as run:
            written = run.children()
            for number in (n for n in range(upto) if f"sweep/{n}" not in written):
                run.trial(f"sweep/{number}", f"trial {number}", params={"tau": number}, metrics={"f1": 0.1})
    children = tracker.client.search_runs(
        [run.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'", order_by=["start_time"]
    )
    assert sorted(c.data.params["tau"] for c in children) == ["0", "1", "2", "3"]


def test_child_runs_that_are_not_part_of_the_present_result_are_deleted(tracker: Tracker) -> None:
    for ids in (("a", "b"), ("b", "c")):
        with tracker.run("his2lip-tune", "repeated", {}, tags={RUN_ID: "repeated"}) as run:
            run.remove_children(keep=ids)
            for child in set(ids) - run.children():
                run.trial(child, child, params={}, metrics={"f1": 0.1}, code_version="1")
    assert run.children() == {"b", "c"}


def test_a_deleted_experiment_is_restored_by_the_next_run(tracker: Tracker) -> None:
    with tracker.run("his2lip-deleted", "first", {}, tags={RUN_ID: "deleted"}) as run:
        pass
    tracker.client.delete_experiment(run.experiment_id)
    with tracker.run("his2lip-deleted", "second", {}, tags={RUN_ID: "later"}) as again:
        again.metrics({"f1": 0.5})
    assert again.experiment_id == run.experiment_id
    assert tracker.client.get_run(again.run_id).data.metrics == {"f1": 0.5}


@pytest.mark.parametrize("copied", [False, True])
def test_a_store_whose_folder_was_moved_or_copied_finds_its_artifacts_there(
    tmp_path: Path, copied: bool
) -> None:
    old, new = tmp_path / "old place", tmp_path / "new"
    tracker = Tracker.open(f"sqlite:///{old}/mlflow.db")
    best = old / "train" / "first" / "best"
    best.mkdir(parents=True)
    with tracker.run("his2lip-train", "first", {"a": 1}, tags={RUN_ID: "moved"}) as run:
        model = run.checkpoint(best, "first", {"tensor_digest": "a" * 64})
    tracker.client._tracking_client.store.engine.dispose()
    shutil.copytree(old, new) if copied else old.rename(new)

    moved = Tracker.open(f"sqlite:///{new}/mlflow.db")
    assert moved.client.get_run(run.run_id).info.artifact_uri.startswith((new / "artifacts").as_uri())
    assert [a.path for a in moved.client.list_artifacts(run.run_id)] == ["config.json"]
    assert moved.client.get_logged_model(model).tags[PATH] == str(new / "train" / "first" / "best")
    with moved.run("his2lip-train", "second", {"a": 2}, tags={RUN_ID: "later"}):
        pass
    assert old.exists() == copied
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_a_store_that_is_reached_through_a_link_does_not_count_as_moved(tmp_path: Path) -> None:
    folder, link = tmp_path / "store", tmp_path / "link"
    uri = f"sqlite:///{folder}/mlflow.db"
    before = Tracker.open(uri)._experiment("his2lip-train")
    link.symlink_to(folder)
    Tracker.open(f"sqlite:///{link}/mlflow.db")
    location = Tracker.open(uri).client.get_experiment(before).artifact_location
    assert location == (folder / "artifacts" / "his2lip-train").as_uri()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_secrets_in_addresses_are_not_stored(tracker: Tracker) -> None:
    secret = "s3://KEY:SECRET@bucket/x?secret_key=SECRET"
    with tracker.run("his2lip-train", "secret", recorded(TrainConfig(data={"shards": secret}))) as run:  # type: ignore[arg-type]
        run.dataset("x", digest="d" * 64, uri=secret, context="training")
        model = run.model("secret", digest="b" * 64, path=secret, params={"a": secret})
        run.params({"other": secret})
    found = tracker.client.get_run(run.run_id)
    config = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/config.json")
    (data,) = found.inputs.dataset_inputs
    logged = tracker.client.get_logged_model(model)
    assert "SECRET" not in f"{logged.tags} {logged.params} {found.data.params}"
    assert found.data.params["data.shards"] == "s3://KEY:***@bucket/x?secret_key=***"
    for text in (config, data.dataset.source):
        assert "bucket" in text
        assert "SECRET" not in text


def test_logged_models_can_be_ranked_by_their_figure_on_each_dataset(tracker: Tracker) -> None:
    for _ in range(2):  # the second time, all grid cells are written already
        with tracker.run("his2lip-benchmark", "zero-shot", {}, tags={RUN_ID: "grid-1"}) as run:
            written = run.children()
            for model, scores in SCORES.items():
                model_id = run.model(model, digest=model * 8)
                for dataset, value in scores.items():
                    if f"{model}/{dataset}" not in written:
                        run.cell(
                            f"{model}/{dataset}", model=model, model_id=model_id, dataset=dataset,
                            protocol="default", digest="e" * 64, metrics={"macro_f1": value}, params={},
                            generated=False, order_depends_on_prompts=dataset == "mist",
                        )  # fmt: skip
    for dataset in ("mihic", "mist"):
        ranked = tracker.client.search_logged_models(
            [run.experiment_id],
            order_by=[{"field_name": "metrics.macro_f1", "dataset_name": dataset, "ascending": False}],
        )
        assert [m.name for m in ranked] == ["strong", "weak"]
    strong = next(m for m in ranked if m.name == "strong")
    scored = {(m.dataset_name, m.key): m.value for m in strong.metrics}
    assert scored == {("mihic", "macro_f1"): 0.9, ("mist", "macro_f1"): 0.6}
    marked = "tags.`his2lip.order` = 'depends on prompts'"
    cells = tracker.client.search_runs([run.experiment_id], marked)
    assert {cell.data.params["dataset"] for cell in cells} == {"mist"}


def test_four_processes_can_open_a_new_store_at_the_same_time(tmp_path: Path) -> None:
    script = "from his2lip.tracking import Tracker\nTracker.open()._experiment('his2lip-train')"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/deep/mlflow.db"}
    started = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(4)]
    assert [process.wait(timeout=240) for process in started] == [0] * 4


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://store"])
def test_a_store_that_cannot_be_used_is_reported_in_one_sentence(uri: str) -> None:
    with pytest.raises(TrackingError) as caught:
        Tracker.open(uri)
    assert (caught.value.key, caught.value.where) == ("MLFLOW_TRACKING_URI", uri)
    assert "\n" not in str(caught.value)
