"""The options of `his2lip train`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from his2lip.config import NAME, Config, OptionError, resolved
from his2lip.data.stream import Augment, Augmentation
from his2lip.loss import LossConfig
from his2lip.resources import STORAGE

TEMPLATES = "templates"  # the value of `data.captions` for the captions that his2lip carries
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Auto = Count | Literal["auto"]


class ModelConfig(Config):
    """Which dual encoder is trained, and in which precision."""

    backbone: str = "tiny"
    """A name of `his2lip models list`, an open_clip name, or a checkpoint's folder."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast around fp32 weights. auto: bf16 on GPUs that have it, else fp32."""
    compile: bool = False
    """Compiles the towers' blocks (torch.compile): shorter steps on a GPU, after up to a minute at the start.
    It needs a C compiler. Results differ by rounding."""
    image_size: Count | None = None
    """Pixels per side. Position embeddings are interpolated to it; null: the backbone's own size."""
    preprocessing: Literal["native", "released"] = "native"
    """native: the backbone's own mean, standard deviation and resizing. released: those of the paper's code,
    which are MIHIC's."""


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021), trained in place of the matrices; checkpoints have them merged."""

    rank: Count = 8
    """Rank of each adapter."""
    alpha: Positive | None = None
    """The adapters are scaled by alpha / rank; null: alpha is the rank."""


class FinetuneConfig(Config):
    """Which parts of the backbone are trained, and how fast. By default all of it is."""

    freeze: Literal["none", "image", "text"] = "none"
    """The tower that is not trained. Each worker then encodes each distinct caption once per run (`text`), or
    each image once (`image` with `data.augment: false`), unless a `projection` above the tower is trained."""
    lora: LoraConfig | None = None
    """Adapters in each tower that is not frozen. The tower's own weights are then frozen, but not the logit
    scale."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of each block, relative to the block above it."""
    projection: Literal["none", "released"] = "none"
    """released: a random D x D matrix after each tower, as in the paper's code; trained, then folded in."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, longer steps, the same gradient."""


class DataConfig(Config):
    """Which patches and captions are trained on, and in which order."""

    shards: str
    """Folder or URI of the prepared shards."""
    split: str = "train"
    """The split to train on, by its name or by its role."""
    select: str | None = "select"
    """The split to validate on after each epoch, by its name or role; null: no validation."""
    protocol: str | None = None
    """The protocol of the dataset's card that scores the select split; null: its `default` protocol."""
    captions: str = TEMPLATES
    """templates, a saved caption bank, or a folder of TISSUE/BIOMARKER.txt."""
    missing: Literal["drop", "template"] = "template"
    """What happens to patches whose classes have no captions in the bank."""
    staining: Literal["follow", "ignore"] = "follow"
    """Whether captions of our templates follow what a patch's label states and its pixels show. ignore: they
    tell what is typical of its tissue type and biomarker, also where the patch shows something else."""
    sampling: Literal["epoch", "released"] = "epoch"
    """epoch: each epoch draws another caption for a patch. released: one caption per patch for all epochs, by
    its row, as in the paper's code."""
    batch_size: Count = 64
    """Pairs in one global batch, over all workers. The paper's code uses 32 per GPU."""
    lanes: Count = 8
    """Virtual readers; a multiple of the number of workers. They decide the order of the data."""
    window: Count = 4
    """Row groups that are shuffled together within a lane."""
    balance: Share = 0.0
    """0: (tissue type, biomarker) pairs as often as they occur. 1: all equally often. Between: by a power."""
    augment: Augmentation = Augment()
    """How patches change from epoch to epoch: true (flips and quarter turns), false, ihc (also crops and
    stain jitter), or a mapping of the three."""
    select_captions: float = Field(default=0.0, ge=0, le=0.5)
    """Share of each pair's captions that training leaves out. Nearly equal sentences stay together; other
    rewordings of a seed may be on both sides. The images of the select split and these captions search each
    other: the metric select/retrieval. What a bank holds out stays unseen."""
    caption_dropout: Share = 0.0
    """Share of captions that are replaced by the names of their classes."""
    loader: Literal["ray", "local"] = "ray"
    """Who reads the shards: Ray Data, or the training process itself. The batches are the same."""
    decode_threads: Auto = "auto"
    """Threads per worker that decode images. auto: the cores of its machine, shared by the workers there."""


class OptimConfig(Config):
    """AdamW, cosine schedule, linear warm-up. The paper: lr 2e-5, decay 0.01, 1 % warm-up, clip 1."""

    lr: Positive = 2e-5
    """Peak learning rate."""
    weight_decay: NotNegative = 0.01
    """Not applied to norms, biases and the logit scale."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's decay rates of the two moments."""
    eps: Positive = 1e-6
    """AdamW's term in the denominator."""
    warmup: float = Field(default=0.01, ge=0)
    """Below 1: share of all steps. From 1: number of steps."""
    epochs: Count = 10
    """Length of the run, unless `steps` is set."""
    steps: Count | None = None
    """Length of the run in steps, in place of `epochs`."""
    grad_clip: NotNegative = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""
    micro_batch: Count | None = None
    """Pairs of one worker that are in memory at once; the gradient stays exact. null: all of them."""


class CheckpointConfig(Config):
    """When a run is saved, and which checkpoint is the best. Only the best and the last are kept."""

    every_steps: Count | None = None
    """Steps between two checkpoints, besides the one at the end of each epoch; null: only those."""
    every_minutes: Positive | None = 10.0
    """Minutes of training that a killed run loses at most; null: up to an epoch."""
    select_by: Literal["macro_f1", "retrieval", "loss"] = "loss"
    """What decides which checkpoint is the best on `data.select`. macro_f1: of zero-shot classification.
    retrieval: of captions that `data.select_captions` leaves out. loss: of whole batches of
    `data.batch_size`, as in training; patches that fill none are left out."""


class WorkersConfig(Config):
    """Where a run works. Results change only by float32 rounding."""

    num: Count = 1
    """Number of workers, each with a model and a share of each batch. Batch normalisation that is trained, as
    in RN50, needs a single one."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Whether each worker has a GPU. auto: where the cluster has enough of them."""
    threads: Auto = "auto"
    """Torch threads of each worker. auto: as many as fit the machines. Threads change the last bits of the
    weights, so a run that is resumed keeps the number that it was started with, which its run.json has."""
    resources: dict[str, NotNegative] = Field(default_factory=dict)
    """Ray resources of each worker, in addition to its CPU or GPU."""
    max_failures: int = Field(default=3, ge=-1)
    """How often workers that died are restarted in one call; the same for the process that controls them. -1:
    without limit."""
    max_preemption_failures: int = Field(default=-1, ge=-1)
    """How often workers are restarted whose machine was taken away after a notice, as spot machines are;
    these do not count as failures. -1: without limit."""


class TrainConfig(Config):
    """One training run."""

    name: str = Field(default="train", pattern=NAME)
    """Name of the run, and of its folder under STORAGE/train."""
    seed: int = Field(default=0, ge=0)
    """Seed of random weights, data order, captions and augmentations."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    workers: WorkersConfig = WorkersConfig()
    log_every: Count = 10
    """Steps between two progress reports."""
    storage: str = STORAGE
    """Folder of runs: on a cluster, one that all nodes share, or the URI of an object store. That has no
    locks: two commands that run one run there at the same time are not refused, and spoil it."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        lanes, num, size = self.data.lanes, self.workers.num, self.data.batch_size
        if size % lanes:
            what = f"data.batch_size ({size}) must be a multiple of data.lanes ({lanes})"
            raise OptionError(what, key="data.batch_size")
        if lanes % num:
            what = f"data.lanes ({lanes}) must be a multiple of workers.num ({num})"
            raise OptionError(what, key="workers.num")
        if self.checkpoint.select_by == "macro_f1" and self.data.select is None:
            raise OptionError("checkpoint.select_by=macro_f1 needs a data.select split", key="data.select")
        if self.checkpoint.select_by == "retrieval" and not (self.data.select and self.data.select_captions):
            what = "checkpoint.select_by=retrieval needs data.select and data.select_captions"
            raise OptionError(what, key="data.select_captions")
        if self.data.select_captions and self.data.select is None:
            what = "data.select_captions leaves out captions that nothing would search: data.select is null"
            raise OptionError(what, key="data.select_captions")
        weights, frozen = self.loss.weights.keep(self.loss.terms), self.finetune.freeze
        trained_by = {"image": weights.text_text, "text": weights.image_image}.get(frozen, 1.0)
        if not weights.image_text and not trained_by:
            what = f"finetune.freeze={frozen} leaves no term of the loss that trains the other tower"
            raise OptionError(what, key="finetune.freeze")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the trained weights: all but the run's name, where it works and when it saves."""
        tree = resolved(self)
        for key in ("name", "storage", "workers", "log_every"):
            del tree[key]
        del tree["checkpoint"]["every_steps"], tree["checkpoint"]["every_minutes"]
        del tree["finetune"]["gradient_checkpointing"]
        for key in ("shards", "loader", "decode_threads"):  # shards count by their digest
            del tree["data"][key]
        if tree["data"]["captions"] != TEMPLATES:  # so do captions, wherever they are
            del tree["data"]["captions"]
        # Runs from before these options keep their identity.
        if tree["data"]["protocol"] is None:
            del tree["data"]["protocol"]
        del tree["data"]["staining"]
        if not tree["model"]["compile"]:
            del tree["model"]["compile"]
        if not tree["data"]["select_captions"]:
            del tree["data"]["select_captions"]
        if not tree["loss"]["similarity"]["finding"]:
            del tree["loss"]["similarity"]["finding"]
        return tree
