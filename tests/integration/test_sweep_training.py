"""Sweeps whose trials train the backbone `tiny`: parameters, splits, kept checkpoints, and processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from training_data import write_small_shards

from his2lip.cli.train import validator as chooses
from his2lip.config import set_values, validate
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation.validation import SelectValidator
from his2lip.models.load import load_model
from his2lip.models.registered import meta_of
from his2lip.training.config import TrainConfig
from his2lip.training.run_inputs import open_data
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.objective import TrainingObjective, training_objective
from his2lip.tuning.study import TrialRow
from his2lip.tuning.sweep import run_sweep
from his2lip.tuning.trial import ObjectiveThread


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("shards") / "small", train=64, select=32)


@pytest.fixture
def tree(shards: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "train": {
            "data": {"shards": shards, "batch_size": 32, "lanes": 4},
            "optim": {"lr": 1e-3, "epochs": 2},
        },
        "space": {
            "loss.weights.image_image": {"kind": "uniform", "low": 0.0, "high": 2.0},
            "loss.tau": {"kind": "log", "low": 0.1, "high": 10.0},
        },
        "points": [{"loss.weights.image_image": beta, "loss.tau": 1.0} for beta in (0.0, 0.5)],
        "trials": 3,
        "max_concurrent": 1,
        "scheduler": {"kind": "none"},
        "storage": str(tmp_path / "runs"),
    }


def validator(base: TrainConfig) -> SelectValidator:
    assert base.data.select is not None
    return SelectValidator(base.data.shards, split=base.data.select)


def objective(tree: dict[str, Any], **changes: Any) -> TrainingObjective:
    return training_objective(validate(SweepConfig, {**tree, **changes}), make_validator=validator)


@pytest.mark.usefixtures("ray_local")
def test_trials_train_with_their_own_parameters_and_the_best_checkpoint_is_kept(tree: dict[str, Any]) -> None:
    tree["max_concurrent"] = 2
    config = validate(SweepConfig, tree)
    made = objective(tree)
    result = run_sweep(config, made, inputs=made.inputs)
    log = Path(result.directory, "his2lip.log").read_text(encoding="utf-8")
    counts = re.findall(r"(\d+) batches were decoded here, (\d+) by other trials", log)
    assert len(counts) == 3
    assert sum(int(decoded) for decoded, _ in counts) == 2 * 2 + 1, "each batch once, in two processes"
    assert not (result.directory / "ray").exists()
    assert {row.state for row in result.trials} == {"finished"}
    assert [row.reports for row in result.trials] == [2, 2, 2]
    terms = [row.metrics["train/loss"] for row in result.trials]
    assert len(set(terms)) == 3
    assert result.best is not None
    folder = result.sweep.trial(result.best.name)
    assert result.best.value == max(row.metrics["select/macro_f1"] for row in result.trials)
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == ["best"]
    load_model(str(folder / "best"))
    assert [p.name for p in folder.parent.iterdir()] == [str(result.best.number)]
    again = run_sweep(config, made, inputs=made.inputs)
    assert again.finished_before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_trials_with_several_workers_use_ray_train_and_can_be_stopped_early(tree: dict[str, Any]) -> None:
    tree["train"]["workers"] = {"num": 2, "resources": {"CPU": 0.5}}
    tree["train"]["data"]["loader"] = "local"
    # The second trial is worse after its first epoch, and is stopped there.
    tree["train"]["optim"]["epochs"] = 3
    tree["space"] = {"optim.lr": {"kind": "log", "low": 1e-9, "high": 1e-3}}
    tree["points"] = [{"optim.lr": 1e-3}, {"optim.lr": 1e-9}]
    tree["trials"] = 2
    tree["scheduler"] = {"kind": "asha", "grace": 1, "reduction": 2}
    tree |= {"keep": 2, "storage": Path(tree["storage"], "bucket").as_uri()}
    made, place = objective(tree), Path(tree["storage"].removeprefix("file://"), "tune/small")
    first: dict[int, dict[str, Any]] = {}

    def on_trial(row: TrialRow) -> None:
        """What the checkpoint in the bucket says when the driver hears that the trial has ended."""
        first[row.number] = meta_of(f"{place.as_uri()}/trials/{row.name}/best.tar")

    result = run_sweep(validate(SweepConfig, tree), made, inputs=made.inputs, on_trial=on_trial)
    assert [row.state for row in result.trials] == ["finished", "stopped"]
    assert [row.reports for row in result.trials] == [3, 1]
    for row in result.trials:
        assert first[row.number]["metrics"]["select/macro_f1"] == row.value
        assert first[row.number]["metrics"]["train/loss"] == row.metrics["train/loss"]
    assert {p.name for p in place.glob("trials/*/*")} == {"best.tar"}
    assert result.best_address is not None
    load_model(result.best_address)
    assert (place / "his2lip.log").read_text(encoding="utf-8").count("raised an error") == 0


def test_the_identity_of_a_sweep_depends_on_the_inputs_of_its_trials(tree: dict[str, Any]) -> None:
    known = objective(tree).inputs
    assert objective(tree, name="other").inputs == known
    assert objective(tree, train={**tree["train"], "seed": 1}).inputs != known


class Listener:
    """Hears what the only trial reports, and stops none."""

    number = 0

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, list[dict[str, float]]()

    def __call__(self, metrics: Any, /) -> bool:
        self.said.append(dict(metrics))
        return False


def choice(key: str, *values: Any) -> dict[str, Any]:
    """A space of one option."""
    return {"space": {key: {"kind": "choice", "values": values}}, "points": []}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"space": {"loss.weights.image_imaeg": {"kind": "uniform", "low": 0, "high": 2}}, "points": []},
            "loss.weights.image_imaeg",
        ),
        (
            {"space": {"loss.tau": {"kind": "uniform", "low": 0.0, "high": 2}}, "points": []},
            "loss.tau",
        ),
        ({"metric": "select/accuracy"}, "metric"),
        ({"metric": "select/loss", "mode": "min"}, "metric"),
        ({"metric": "select/loss", "mode": "min", **choice("data.batch_size", 16, 32)}, "metric"),
        ({"metric": "select/loss", "mode": "min", **choice("data.missing", "drop", "template")}, "metric"),
        (choice("data.protocol", None, "default"), "data.protocol"),
        (choice("data.select", "select", "train"), "data.select"),
        (choice("data.select_captions", 0.1, 0.2), "data.select_captions"),
        (choice("checkpoint.select_by", "loss", "macro_f1"), "checkpoint.select_by"),
        ({"mode": "min"}, "mode"),
        ({"split": "train"}, "split"),
    ],
)
def test_an_invalid_sweep_is_refused_before_the_first_trial(
    tree: dict[str, Any], changes: dict[str, Any], key: str
) -> None:
    with pytest.raises((ConfigError, DatasetError)) as refused:
        objective(tree, **changes)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("base", "key", "values"),
    [
        ({"optim.steps": 4}, "optim.epochs", (1, 2)),
        ({"loss.variant": "released"}, "loss.tau", (0.5, 1.0)),
        ({"loss.variant": "released"}, "loss.similarity.biomarker", (0.0, 1.0)),
        ({"loss.variant": "released"}, "loss.normalize", (True, False)),
        ({"loss.terms": "hard"}, "loss.tau", (0.5, 1.0)),
        ({"loss.terms": "text_only"}, "loss.weights.image_image", (0.5, 1.0)),
    ],
)
def test_an_option_that_has_no_effect_on_any_trial_is_not_varied(
    tree: dict[str, Any], base: dict[str, Any], key: str, values: tuple[Any, ...]
) -> None:
    train = set_values(tree["train"], base)
    space = choice(key, *values)
    with pytest.raises(ConfigError) as refused:
        objective(tree, train=train, **space)
    assert refused.value.key == key
    assert next(iter(base)) in refused.value.what
    objective(tree, **space)


def test_a_sweep_by_loss_may_vary_what_leaves_the_batches_of_the_select_split_as_they_are(
    tree: dict[str, Any],
) -> None:
    for key, values in {"data.balance": (0.0, 1.0), "data.augment.crop": (0.6, 1.0), "seed": (0, 1)}.items():
        objective(tree, metric="select/loss", mode="min", **choice(key, *values))


@pytest.mark.parametrize("staining", ["follow", "ignore"])
def test_trials_may_differ_in_whether_captions_follow_the_staining(
    tree: dict[str, Any], staining: str
) -> None:
    tree["train"]["optim"]["epochs"] = 1
    made = objective(tree, **choice("data.staining", "follow", "ignore"))
    listener = Listener(Path(tree["storage"]) / "trial")
    made({"data.staining": staining}, listener)
    assert "select/macro_f1" in listener.said[0]


def test_a_trial_only_uses_a_gpu_that_ray_assigned_to_it(tree: dict[str, Any]) -> None:
    tree["train"]["workers"] = {"use_gpu": True}
    made = objective(tree)
    with pytest.raises(ConfigError) as refused:
        made({"loss.tau": 1.0}, ObjectiveThread(made, {}))
    assert refused.value.key == "gpus"


def test_a_loss_that_becomes_nan_is_a_failed_trial_and_not_an_error_of_the_user(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["train"]["optim"] |= {"lr": 1e30, "grad_clip": 0.0}
    made = objective(tree)
    listener = Listener(tmp_path / "trial")
    made({"loss.tau": 1.0}, listener)
    last = listener.said[-1]["select/macro_f1"]
    assert last != last


def test_a_sweep_by_retrieval_measures_captions_that_its_trials_do_not_train_on(tree: dict[str, Any]) -> None:
    metrics = ["select/macro_f1", "select/retrieval"]
    with pytest.raises(ConfigError) as refused:
        objective(tree, metric=metrics)
    assert refused.value.key == "metric"
    tree["train"]["data"]["select_captions"] = 0.2
    with pytest.raises(ConfigError) as refused:
        objective(tree, metric=metrics, **choice("data.staining", "follow", "ignore"))
    assert refused.value.key == "data.staining"
    tree["train"]["optim"]["epochs"] = 1
    made = training_objective(validate(SweepConfig, {**tree, "metric": metrics}), make_validator=chooses)
    assert isinstance(made.validator, SelectValidator)
    drawn = set(open_data(made.base)[2].distinct())
    assert made.validator.captions
    assert not drawn & {text for text, *_ in made.validator.captions}
    listener = Listener(Path(tree["storage"]) / "trial")
    made({"loss.tau": 1.0}, listener)
    assert 0 < listener.said[0]["select/retrieval"] < 1
