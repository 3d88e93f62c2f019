"""The training loop in plain torch. Ray Train, a trial of a sweep, or a test drives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import nn

from his2lip.data.stream import Batch
from his2lip.errors import CheckpointError, ConfigError, DivergedError
from his2lip.loss import MAX_LOG_SCALE, TERMS
from his2lip.models import ResumeState, send
from his2lip.training.config import TrainConfig
from his2lip.training.frozen import frozen_features
from his2lip.training.gradient import accumulate, average_gradients
from his2lip.training.optim import build_optimizer, learning_rate, set_learning_rate
from his2lip.training.progress import Clock, StepReport, TrainState

if TYPE_CHECKING:
    from his2lip.loss import LossOutput, WISELoss
    from his2lip.models import DualEncoder


_COMPUTED = "computed_as"  # key of a resume state


class Source(Protocol):
    """The data as the loop reads it: this rank's share of the global batches, from any step on."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one epoch."""

    def train(self, start: int, stop: int) -> Iterable[Batch]:
        """The batches of steps start, …, stop - 1, which may span several epochs."""

    def select(self) -> Iterable[Batch]:
        """The validation batches, the same at every call; none without a select split."""


@dataclass(frozen=True)
class Outcome:
    """How `fit` ended. `stopped`: `report` ended it early."""

    state: TrainState
    metrics: dict[str, float]
    stopped: bool


# Called by rank 0 only: (model, what resuming needs, latest metrics, whether this is the best so far).
Save = Callable[["DualEncoder", ResumeState, dict[str, float], bool], None]
# Called on every rank. Metrics are the same on all ranks, except those of `validate`, which only rank 0 has,
# and those of the clock. Returning True ends the run early; every rank must return the same.
OnReport = Callable[[StepReport], bool | None]
# Zero-shot metrics of the model on the select split, such as {"macro_f1": 0.8}.
Validate = Callable[["DualEncoder"], Mapping[str, float]]


def fit(
    config: TrainConfig,
    model: DualEncoder,
    loss: WISELoss,
    source: Source,
    *,
    report: OnReport,
    save: Save | None = None,
    due: Callable[[], bool] | None = None,
    validate: Validate | None = None,
    resume: ResumeState | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Outcome:
    """Trains `model` in place until the configured step, or until `report` returns True.

    `due` is asked after each step whether a checkpoint is wanted now, besides those of the config.
    Random numbers depend on (seed, step, rank) only, and the learning rate on the step. A run that is resumed
    from any saved state therefore ends with the same bits (on CPU, with the same number of threads).
    Raises DivergedError where the loss or the weights become NaN or infinite, ConfigError where the model
    does not fit the options, and CheckpointError where the ranks resume from different steps.
    """
    device = torch.device(device)
    model.to(device)
    model.similarity = config.loss.scoring
    loss.to(device)
    _refuse_batch_norm(config, model)
    optimizer = build_optimizer(model, loss, config.optim, layer_decay=config.finetune.layer_decay)
    run = _Run(config, model, loss, source, optimizer, device, rank, world, save, validate, due)
    _check_same_step(config, resume.step if resume else 0, device, rank=rank, world=world)
    return run.go(TrainState() if resume is None else run.restore(resume), report)


@dataclass
class _Run:
    """One call of `fit`: its arguments, the optimizer and the clock."""

    config: TrainConfig
    model: DualEncoder
    loss: WISELoss
    source: Source
    optimizer: torch.optim.Optimizer
    device: torch.device
    rank: int
    world: int
    save: Save | None
    validate: Validate | None
    due: Callable[[], bool] | None

    def __post_init__(self) -> None:
        self.epoch_steps = self.source.steps_per_epoch
        self.steps = self.config.optim.steps or self.config.optim.epochs * self.epoch_steps
        self.clock = Clock()
        # Features of frozen towers, which are those of this run: another one may start from other weights.
        self.frozen_image = frozen_features(self.model, "image")
        self.frozen_text = frozen_features(self.model, "text")
        # The loss has a parameter where it is the released hard one: its own logit scale.
        self.parts = nn.ModuleDict({"model": self.model, "loss": self.loss})

    def restore(self, resume: ResumeState) -> TrainState:
        """Restores all but the model's checkpoint. Raises CheckpointError where the state does not fit it."""
        resume.restore(self.model, self.optimizer, self.parts)
        own = {name: torch.tensor(value) for name, value in resume.extra["loss"].items()}
        self.loss.load_state_dict(own)
        return TrainState.from_json(resume.extra["run"])

    def go(self, state: TrainState, report: OnReport) -> Outcome:
        """Trains from `state` on. Reports every `log_every` steps and at the end of each epoch.

        A step is reported before its checkpoint is saved, and an epoch afterwards. A run that is resumed at
        the end of an epoch reports that epoch again, because its process may have died in between.
        """
        metrics: dict[str, float] = dict(state.history[-1]) if state.history else {}
        if metrics and metrics["step"] == state.step:
            again = {name: value for name, value in metrics.items() if name != "step"}
            if report(self.step_report("epoch", state, again)) and state.step < self.steps:
                return Outcome(state, metrics, stopped=True)
        for batch in self.clock.timed(self.source.train(state.step, self.steps)):
            output = self.train_step(batch)
            state = TrainState(batch.step + 1, state.best_step, state.best_score, state.history)
            self.clock.count(len(batch) * self.world)
            done = state.step == self.steps
            if done or state.step % self.epoch_steps == 0:
                state, metrics = self.end_epoch(state, output)
                if report(self.step_report("epoch", state, metrics)) and not done:
                    return Outcome(state, metrics, stopped=True)
                self.clock.reset()
                continue
            measured = None
            if state.step % self.config.log_every == 0:
                measured = self.measure(output, state.step)
                self.clock.reset()
                if report(self.step_report("step", state, measured)):
                    return Outcome(state, measured, stopped=True)
            every = self.config.checkpoint.every_steps or self.steps
            if state.step % every == 0 or (self.due is not None and self.due()):
                self.write(state, measured or self.measure(output, state.step), best=False)
        return Outcome(state, metrics, stopped=False)

    def train_step(self, batch: Batch) -> LossOutput:
        """One step of AdamW on a global batch, of which `batch` is this rank's share; the loss's output."""
        self.model.train()
        outputs: list[LossOutput] = []

        def objective(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
            outputs.append(self.evaluate_loss(image_features, text_features, batch))
            return outputs[-1].total

        rate = learning_rate(batch.step, steps=self.steps, config=self.config.optim)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        accumulate(
            self.encode,
            objective,
            *self.inputs(batch, augmented=self.config.data.augment.changes),
            piece=self.config.optim.micro_batch,
            seed=(self.config.seed, batch.step, self.rank),
        )
        parameters = list(self.parts.parameters())
        average_gradients(parameters, world=self.world)
        if self.config.optim.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.config.optim.grad_clip)
        self.optimizer.step()
        if self.loss.clamp:  # beyond the bound the scale has no gradient, so it could not return
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=MAX_LOG_SCALE)
        return outputs[-1]

    def inputs(self, batch: Batch, *, augmented: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images, float (B, 3, H, W), on the device, and tokens, int64 (B, L), on the CPU.

        Features, float32 (B, D), are in place of captions where the text tower is frozen, and of images where
        the image tower is and images are not `augmented`.
        """

        def images(pixels: torch.Tensor) -> torch.Tensor:
            return self.model.preprocess.normalize(send(pixels, self.device))

        tokens = self.model.tokenize

        by_id, by_caption = None if augmented else self.frozen_image, self.frozen_text
        return (
            images(batch.images)
            if by_id is None
            else by_id(batch.patch_ids, lambda places: images(batch.images[places])),
            tokens(batch.captions)
            if by_caption is None
            else by_caption(batch.captions, lambda places: tokens([batch.captions[i] for i in places])),
        )

    def encode(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw features, float32 (B, D) each, of what `inputs` gives; those of frozen towers are there."""
        return (
            images if images.ndim == 2 else self.model.encode_image(images, normalize=False),
            tokens if tokens.is_floating_point() else self.model.encode_text(tokens, normalize=False),
        )

    def features(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and caption features, float32 (B, D) each, computed `micro_batch` pairs at a time."""
        images, tokens = self.inputs(batch, augmented=False)
        piece = self.config.optim.micro_batch or len(images)
        pieces = [self.encode(i, t) for i, t in zip(images.split(piece), tokens.split(piece), strict=True)]
        return torch.cat([i for i, _ in pieces]), torch.cat([t for _, t in pieces])

    def evaluate_loss(
        self, image_features: torch.Tensor, text_features: torch.Tensor, batch: Batch
    ) -> LossOutput:
        tissue, biomarker, finding = (
            send(ids, self.device) for ids in (batch.tissue, batch.biomarker, batch.finding)
        )
        return self.loss(
            image_features, text_features, tissue, biomarker, self.model.logit_scale, finding=finding
        )

    def end_epoch(self, state: TrainState, output: LossOutput) -> tuple[TrainState, dict[str, float]]:
        """Validates and saves the model; the new state and the metrics."""
        metrics = self.measure(output, state.step) | self.measure_select(state.step)
        score = _score(metrics, self.config.checkpoint.select_by)
        best = score >= state.best_score  # without a select split every epoch ties, and the last one is best
        state = TrainState(
            state.step,
            state.step if best else state.best_step,
            score if best else state.best_score,
            (*state.history, metrics | {"step": float(state.step)}),
        )
        self.write(state, metrics, best=best)
        return state, metrics

    def write(self, state: TrainState, metrics: dict[str, float], *, best: bool) -> None:
        """Saves the model, on rank 0. Schedule and random generators depend on the step, without a state.

        Raises DivergedError for weights that are not finite: no run could resume from them.
        """
        if not all(weight.isfinite().all() for weight in self.parts.parameters()):
            raise self.diverged("the weights", state.step)
        if self.save is not None and self.rank == 0:
            # A float32 scalar is exact as a JSON number.
            of_loss = {name: value.item() for name, value in self.loss.state_dict().items()}
            extra = {"run": state.to_json(), "loss": of_loss, _COMPUTED: computed_as(self.model, self.device)}
            saved = ResumeState.capture(self.model, self.optimizer, self.parts, step=state.step, extra=extra)
            self.save(self.model, saved, metrics, best)

    def measure(self, output: LossOutput, step: int) -> dict[str, float]:
        """The loss terms of a step, and the speed since the last report. Raises DivergedError."""
        own = self.loss.own_scale  # in place of the model's
        log_scale = self.model.logit_scale if own is None else own
        return {f"train/{name}": value for name, value in self.numbers(output, step).items()} | {
            "train/lr": learning_rate(step - 1, steps=self.steps, config=self.config.optim),
            "train/logit_scale": log_scale.detach().exp().item(),
            "train/images_per_second": self.clock.images_per_second(),
            "train/data_wait": self.clock.wait_share(),
        }

    @torch.no_grad()
    def measure_select(self, step: int) -> dict[str, float]:
        """Loss and excess on the select split, and the metrics of `validate`. Raises ConfigError."""
        self.model.eval()
        sums: dict[str, float] = {}
        pairs = 0
        for batch in self.source.select():
            output = self.evaluate_loss(*self.features(batch), batch)
            for name, value in self.numbers(output, step).items():
                sums[name] = sums.get(name, 0.0) + value * len(batch)
            pairs += len(batch)
        found = {f"select/{name}": value / pairs for name, value in sums.items()}
        if self.validate is not None and self.rank == 0:
            found |= {f"select/{name}": float(value) for name, value in self.validate(self.model).items()}
        select_by = self.config.checkpoint.select_by
        if self.rank == 0 and select_by != "loss" and f"select/{select_by}" not in found:
            raise ConfigError(
                f"the validation does not measure select/{select_by}, which selects the best checkpoint",
                where=self.config.name,
                key="checkpoint.select_by",
            )
        return found

    def numbers(self, output: LossOutput, step: int) -> dict[str, float]:
        """The scalars of a loss output, and the weighted excess. Raises DivergedError."""
        numbers = output.metrics()
        if not all(map(math.isfinite, numbers.values())):
            raise self.diverged("the loss", step)
        weights = self.loss.weights
        excess = sum(getattr(weights, term) * numbers[f"excess_{term}"] for term in TERMS)
        return {"loss": numbers.pop("total"), "excess": excess, **numbers}

    def diverged(self, what: str, step: int) -> DivergedError:
        return DivergedError(
            f"{what} became NaN or infinite at step {step}",
            where=self.config.name,
            key="optim.lr",
            fix="lower optim.lr, and start again with --fresh or another name",
        )

    def step_report(
        self, kind: Literal["step", "epoch"], state: TrainState, metrics: dict[str, float]
    ) -> StepReport:
        epoch = (state.step - 1) // self.epoch_steps + 1
        return StepReport(kind, state.step, self.steps, epoch, metrics, best=state.best_step == state.step)


def computed_as(model: DualEncoder, device: torch.device) -> str:
    """Precision and kind of device of a training, such as `bf16 on cuda`."""
    return f"{model.precision} on {device.type}"


def resumed_otherwise(resume: ResumeState, model: DualEncoder, device: torch.device) -> str | None:
    """A sentence where `auto` means another precision or device than at the checkpoint; None where not."""
    before, now = resume.extra.get(_COMPUTED), computed_as(model, device)
    if before in (None, now):  # checkpoints of earlier versions do not record it
        return None
    return (
        f"this run was trained in {before} up to step {resume.step} and is resumed in {now}: "
        "it ends with other weights than an undisturbed run"
    )


def _score(metrics: Mapping[str, float], select_by: str) -> float:
    """The value that selects the best checkpoint, the higher the better.

    0 without a select split, and on ranks that do not validate: they save nothing.
    """
    if select_by == "loss":
        return -metrics.get("select/loss", 0.0)
    return metrics.get(f"select/{select_by}", 0.0)


def _check_same_step(config: TrainConfig, step: int, device: torch.device, *, rank: int, world: int) -> None:
    """Raises CheckpointError where another rank starts at another step: its data and its weights are others.

    A worker that outlives its command may replace the checkpoint between two ranks' reading it.
    """
    if world == 1:
        return
    steps = torch.zeros(world, dtype=torch.int64, device=device)
    steps[rank] = step
    torch.distributed.all_reduce(steps)
    if len(found := set(steps.tolist())) > 1:
        what = f"the workers read the checkpoint of steps {' and '.join(map(str, sorted(found)))}"
        fix = "the same command resumes the run"
        raise CheckpointError(f"{what}: it was replaced meanwhile", where=config.name, key="last", fix=fix)


def _refuse_batch_norm(config: TrainConfig, model: nn.Module) -> None:
    """Raises ConfigError: batch normalisation makes features depend on how a batch is cut into pieces."""
    model.train()  # in which frozen parts keep their statistics
    if not any(m.training for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        return
    for key, cut in (
        ("optim.micro_batch", config.optim.micro_batch is not None),
        ("workers.num", config.workers.num > 1),
    ):
        if cut:
            raise ConfigError(
                "this backbone has batch normalisation: a batch in pieces would have another gradient",
                where=key,
                key=key,
                fix=f"leave {key} out, or choose a ViT backbone",
            )
