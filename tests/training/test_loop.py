"""The training loop without any driver: learning, resuming, stopping, choosing the best, and refusals."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.errors import ConfigError, DivergedError
from his2lip.loss import WISELoss
from his2lip.models.architecture import TINY_PREPROCESS
from his2lip.models.encoder import DualEncoder
from his2lip.models.finetune import freeze
from his2lip.models.load import load_model
from his2lip.models.resume import ResumeState, load_resume
from his2lip.training.build import checkpoint_writer, prepare_process
from his2lip.training.config import TrainConfig
from his2lip.training.loop import Outcome, fit, resumed_otherwise
from his2lip.training.progress import SaveClock, StepReport
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import open_data
from his2lip.training.source import StreamSource


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("small") / "shards", train=112, select=32)


@pytest.fixture(autouse=True)
def deterministic() -> Any:
    prepare_process(TrainConfig.model_validate({"data": {"shards": "-"}}), torch.device("cpu"))
    yield
    torch.use_deterministic_algorithms(False)


def make(shards: str, **sections: dict[str, Any]) -> TrainConfig:
    tree: dict[str, Any] = {
        "data": {"shards": shards, "batch_size": 16, "lanes": 4, "loader": "local"}
        | sections.pop("data", {}),
        "optim": {"lr": 1e-3, "epochs": 2, "warmup": 0.1} | sections.pop("optim", {}),
        **sections,
    }
    config, _, _ = open_data(validate(TrainConfig, tree))
    return config


def run(
    config: TrainConfig, *, model: DualEncoder | None = None, **options: Any
) -> tuple[Outcome, DualEncoder]:
    """Trains a tiny model, from the start or from the `model` and `resume` of a checkpoint."""
    model = model or load_model("tiny", seed=config.seed)
    _, _, bank = open_data(config)
    source = StreamSource(config, bank, preprocess=TINY_PREPROCESS)
    options.setdefault("report", lambda progress: None)
    return fit(config, model, WISELoss.from_config(config.loss), source, **options), model


def test_training_lowers_the_excess_on_the_select_split_and_reports_it(shards: str) -> None:
    told: list[StepReport] = []
    config = make(shards, optim={"epochs": 4}, log_every=3)
    outcome, _ = run(config, report=told.append)
    epochs = [p for p in told if p.kind == "epoch"]
    assert [p.step for p in epochs] == [7, 14, 21, 28]
    assert [p.step for p in told if p.kind == "step"] == [3, 6, 9, 12, 15, 18, 24, 27]
    excess = [p.metrics["select/excess"] for p in epochs]
    assert 0 < excess[-1] < 0.9 * excess[0]
    assert all(math.isfinite(value) for p in told for value in p.metrics.values())
    assert 0 <= epochs[0].metrics["train/data_wait"] <= 1
    assert epochs[-1].metrics["train/lr"] < 1e-4
    assert [h["step"] for h in outcome.state.history] == [7, 14, 21, 28]


def test_a_run_resumed_at_any_checkpoint_ends_with_the_uninterrupted_weights(
    shards: str, tmp_path: Path
) -> None:
    config = make(shards, checkpoint={"every_steps": 5})
    _, opened, bank = open_data(config)
    write = checkpoint_writer(RunDir(tmp_path / "run"), config, opened, bank)
    kept: list[Path] = []

    def save(model: DualEncoder, *rest: Any) -> None:
        write(model, *rest)
        kept.append((tmp_path / "run" / "last").rename(tmp_path / f"at-{rest[0].step}"))

    whole, model = run(config, save=save)
    wanted = model.tensor_digest()
    assert [p.name for p in kept] == ["at-5", "at-7", "at-10", "at-14"]
    for saved in kept:  # after the last one, no step is left
        told: list[StepReport] = []
        resume = load_resume(saved)
        outcome, again = run(config, model=load_model(str(saved)), resume=resume, report=told.append)
        assert resume is not None
        ends = [7, 14] if resume.step <= 7 else [14]
        assert [p.step for p in told if p.kind == "epoch"] == ends, "also that of the checkpoint itself"
        assert again.tensor_digest() == wanted, saved.name
        assert outcome.state.best_score == whole.state.best_score
        assert outcome.metrics["select/loss"] == whole.metrics["select/loss"]


def test_a_run_that_is_resumed_at_the_end_of_an_epoch_reports_it_as_it_was(
    shards: str, tmp_path: Path
) -> None:
    """The process may have died after the checkpoint and before the report."""
    config = make(shards, optim={"epochs": 1}, log_every=3, checkpoint={"every_steps": 3})
    _, opened, bank = open_data(config)
    write = checkpoint_writer(RunDir(tmp_path / "run"), config, opened, bank)
    events: list[StepReport | int] = []

    def save(model: DualEncoder, resume: ResumeState, *rest: Any) -> None:
        write(model, resume, *rest)
        events.append(resume.step)

    run(config, save=save, report=events.append)
    told = [event if isinstance(event, int) else f"{event.kind} {event.step}" for event in events]
    assert told == ["step 3", 3, "step 6", 6, 7, "epoch 7"], "a step before its checkpoint"
    again: list[StepReport] = []
    last = tmp_path / "run" / "last"
    run(config, model=load_model(str(last)), resume=load_resume(last), report=again.append)
    assert again == [events[-1]]


def test_a_report_of_a_resumed_epoch_that_returns_true_ends_the_run(shards: str, tmp_path: Path) -> None:
    config = make(shards)
    _, opened, bank = open_data(config)
    write, last = checkpoint_writer(RunDir(tmp_path), config, opened, bank), tmp_path / "last"
    run(config, save=write, report=lambda progress: progress.kind == "epoch")
    outcome, _ = run(
        config, model=load_model(str(last)), resume=load_resume(last), report=lambda progress: True
    )
    assert (outcome.stopped, outcome.state.step) == (True, 7)


def test_a_checkpoint_is_saved_when_one_is_due_and_the_weights_are_the_same(shards: str) -> None:
    asked = iter([False, True, False, True])
    saved: list[ResumeState] = []
    config = make(shards, optim={"epochs": 1})
    _, model = run(
        config,
        save=lambda m, resume, *rest: saved.append(resume),
        due=lambda: next(asked, False),
    )
    assert [state.step for state in saved] == [2, 4, 7], "twice on request, and at the end of the epoch"
    device = torch.device("cpu")
    assert resumed_otherwise(saved[0], model, device) is None
    told = resumed_otherwise(saved[0], load_model("tiny", precision="bf16"), device)
    assert told is not None
    assert "fp32 on cpu" in told
    assert "bf16 on cpu" in told
    assert model.tensor_digest() == run(config)[1].tensor_digest()


def test_a_checkpoint_is_due_when_its_minutes_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.0, 219.0, 220.0, 221.0, 222.0, 1e9])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    clock, never = SaveClock(2.0), SaveClock(None)
    before, after = clock.due(), clock.due()
    clock.reset()
    assert (before, after, clock.due(), never.due()) == (False, True, False, False)


def test_without_the_optimizers_state_the_weights_differ(shards: str, tmp_path: Path) -> None:
    """Shows that the test above can fail."""
    config = make(shards, checkpoint={"every_steps": 10})
    _, opened, bank = open_data(config)
    folder = tmp_path / "run"
    write = checkpoint_writer(RunDir(folder), config, opened, bank)
    _, model = run(config, save=lambda m, r, *rest: write(m, r, *rest) if r.step == 10 else None)
    saved = load_resume(folder / "last")
    assert saved is not None
    forgetful = type(saved)(step=saved.step, optimizer={}, extra=saved.extra)
    _, again = run(config, model=load_model(str(folder / "last")), resume=forgetful)
    assert again.tensor_digest() != model.tensor_digest()


def test_training_in_pieces_gives_the_weights_of_the_whole_batch(shards: str) -> None:
    _, whole = run(make(shards, optim={"steps": 6}))
    _, pieces = run(make(shards, optim={"steps": 6, "micro_batch": 5}))
    for (name, a), b in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4, msg=name)


def test_the_reported_scale_is_the_one_that_the_loss_uses(shards: str) -> None:
    for section, first in (({}, 1 / 0.07), ({"variant": "released", "terms": "hard"}, math.e)):
        told: list[StepReport] = []
        run(make(shards, optim={"steps": 1, "lr": 1e-6}, loss=section), report=told.append)
        assert told[-1].metrics["train/logit_scale"] == pytest.approx(first, rel=1e-4), section


def test_a_report_that_returns_true_ends_the_run(shards: str) -> None:
    outcome, _ = run(make(shards), report=lambda progress: progress.kind == "epoch")
    assert outcome.stopped
    assert outcome.state.step == 7


def test_a_run_that_ends_in_the_middle_of_an_epoch_is_validated(shards: str) -> None:
    outcome, _ = run(make(shards, optim={"steps": 9}))
    assert outcome.state.step == 9
    assert "select/loss" in outcome.metrics
    assert not outcome.stopped


def test_best_is_the_epoch_with_the_highest_score_of_the_validator(shards: str) -> None:
    scores = iter([0.3, 0.8, 0.5])
    saved: list[tuple[int, bool]] = []
    config = make(shards, optim={"epochs": 3}, checkpoint={"select_by": "macro_f1"})
    outcome, _ = run(
        config,
        validate=lambda model: {"macro_f1": next(scores)},
        save=lambda model, resume, metrics, best: saved.append((resume.step, best)),
    )
    assert saved == [(7, True), (14, True), (21, False)]
    assert (outcome.state.best_step, outcome.state.best_score) == (14, 0.8)
    assert outcome.metrics["select/macro_f1"] == 0.5


def test_a_validator_without_the_figure_that_selects_the_best_epoch_is_refused(shards: str) -> None:
    config = make(shards, optim={"steps": 1}, checkpoint={"select_by": "macro_f1"})
    with pytest.raises(ConfigError) as refused:
        run(config, validate=lambda model: {"accuracy": 0.5})
    assert refused.value.key == "checkpoint.select_by"


def test_without_a_select_split_the_last_epoch_is_best(shards: str) -> None:
    saved: list[tuple[int, bool]] = []
    config = make(shards, data={"select": None})
    run(config, save=lambda model, resume, metrics, best: saved.append((resume.step, best)))
    assert saved == [(7, True), (14, True)]


def test_scale_of_the_released_hard_loss_is_learnt_and_resumed(shards: str) -> None:
    saved: list[Any] = []
    config = make(shards, loss={"variant": "released", "terms": "hard"}, checkpoint={"every_steps": 3})
    run(config, save=lambda model, resume, metrics, best: saved.append(resume.extra["loss"]["own_scale"]))
    assert len(set(saved)) == len(saved) > 2
    assert saved[0] != 1.0


def test_a_loss_that_becomes_nan_ends_the_run_with_the_step(shards: str) -> None:
    model = load_model("tiny", seed=0)
    with torch.no_grad():
        model.clip.text_projection.fill_(torch.inf)
    config = make(shards, log_every=1)
    with pytest.raises(DivergedError) as refused:
        run(config, model=model)
    assert (refused.value.key, refused.value.where) == ("optim.lr", config.name)
    assert re.findall(r"\d+", refused.value.what) == ["1"], "the first step"


@pytest.mark.parametrize("section", [{"every_steps": 1}, {}])
def test_weights_that_became_nan_are_not_saved_although_the_loss_was_still_finite(
    shards: str, section: dict[str, Any]
) -> None:
    """The loss is that of the weights before the step. A run could not resume from what was saved."""
    saved: list[bool] = []
    optim = {"lr": 1e3, "warmup": 0.0} | ({} if section else {"steps": 2})
    config = make(shards, data={"select": None}, optim=optim, checkpoint={"select_by": "loss", **section})
    with pytest.raises(DivergedError) as refused:
        run(
            config,
            save=lambda model, *rest: saved.append(all(p.isfinite().all() for p in model.parameters())),
        )
    assert all(saved)
    assert re.findall(r"\d+", refused.value.what) == ["2"]


@pytest.mark.parametrize(
    ("sections", "key"),
    [({"optim": {"micro_batch": 8}}, "optim.micro_batch"), ({"workers": {"num": 2}}, "workers.num")],
)
def test_training_in_pieces_is_refused_for_a_model_with_batch_normalisation(
    shards: str, sections: dict[str, Any], key: str
) -> None:
    model = load_model("tiny", seed=0)
    model.clip.visual.norm = torch.nn.BatchNorm2d(3)
    with pytest.raises(ConfigError) as refused:
        run(make(shards, **sections), model=model)
    assert refused.value.key == key
    freeze(model, "image")
    run(make(shards, **sections | {"optim": sections.get("optim", {}) | {"steps": 1}}), model=model)


def test_seeds_give_different_runs_and_the_same_seed_the_same(shards: str) -> None:
    first, second, other = (run(make(shards, optim={"steps": 2}, seed=s))[1] for s in (0, 0, 1))
    assert first.tensor_digest() == second.tensor_digest() != other.tensor_digest()
