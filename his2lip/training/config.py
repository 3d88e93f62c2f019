"""What a training run is made of: every option of `his2lip train`, with its default and its reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from his2lip.config import Config, resolved
from his2lip.data.stream import Augment, Augmentation
from his2lip.resources import STORAGE

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ModelConfig(Config):
    """Which dual encoder is trained, and in which arithmetic."""

    backbone: str = "tiny"  # a name of `his2lip models list`, an open_clip name, or a checkpoint directory
    # bf16 is autocast around fp32 weights; auto takes it on GPUs that have it, and fp32 elsewhere.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    image_size: Count | None = (
        None  # px of a side; position embeddings are interpolated; null is the native one
    )
    # native: the backbone's own mean, deviation and resizing. released: those of the paper's code (MIHIC's).
    preprocessing: Literal["native", "released"] = "native"


class LoraConfig(Config):
    """Low-rank adapters: what learns in place of the matrices they go into; checkpoints hold them merged."""

    rank: Count = 8
    alpha: Positive | None = None  # they count alpha / rank times; null is the rank


class FinetuneConfig(Config):
    """What of the backbone learns, and how fast. The defaults are full fine-tuning."""

    freeze: Literal["none", "image", "text"] = "none"  # a whole tower that stays as it is
    lora: LoraConfig | None = None  # in the towers that are not frozen; all else but the logit scale is
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # rate of each block against the one above it
    # released: the paper's code, a random D x D matrix after each tower, which learns and is then folded in.
    projection: Literal["none", "released"] = "none"
    gradient_checkpointing: bool = False  # less memory for a longer step; the gradient stays the same


class DataConfig(Config):
    """Which patches and captions, in which order (design section 4, principle 4)."""

    shards: str  # URI of prepared shards
    split: str = "train"  # a split by its name, or by its role
    select: str | None = "select"  # likewise; validated after each epoch, null trains without validation
    # The protocol of the dataset's card that scores the select split; null is its `default` protocol.
    protocol: str | None = None
    captions: str = "templates"  # "templates", a saved caption bank, or a folder of TISSUE/BIOMARKER.txt
    missing: Literal["drop", "template"] = "template"  # patches whose classes have no captions in the bank
    # A patch's caption: another draw each epoch, or one for all, by row as the released code has it.
    sampling: Literal["epoch", "released"] = "epoch"
    batch_size: Count = 64  # pairs in one global batch, over all workers; the paper's code uses 32 a GPU
    lanes: Count = 8  # virtual readers; the number of workers divides it
    window: Count = 4  # row groups that are shuffled together within a lane
    balance: Share = 0.0  # 0 samples (tissue, biomarker) cells as they are, 1 equally, between: to a power
    # What changes of a patch, keyed by (seed, epoch, patch): true (flips and quarter turns), false, ihc (also
    # crops and stain jitter), or {turns, crop, stain} of his2lip/data/stream/augment.py.
    augment: Augmentation = Augment()
    caption_dropout: Share = 0.0  # share of captions that give way to their classes' names, likewise keyed
    loader: Literal["ray", "local"] = "ray"  # the same batches, by Ray Data or in this process
    decode_threads: Count = 2


class WeightsConfig(Config):
    """alpha, beta, gamma of design section 6. AdamW all but ignores the scale, so alpha is the unit."""

    image_text: Weight = 1.0
    image_image: Weight = 0.5
    text_text: Weight = 0.5

    @pydantic.model_validator(mode="after")
    def _some_term(self) -> WeightsConfig:
        if not (self.image_text or self.image_image or self.text_text):
            raise ValueError("at least one of the three weights must be above zero")
        return self


class SimilarityConfig(Config):
    """What a shared tissue type, (tissue, biomarker) pair, or biomarker across tissues adds to S_ij."""

    tissue: Weight = 1.0
    pair: Weight = 1.0
    biomarker: Weight = 0.0


class LossConfig(Config):
    """The WISE loss (design section 6). Under `variant: released` the last four have the released values."""

    variant: Literal["wise", "released"] = "wise"  # released: the authors' arithmetic, to float32 rounding
    # full: all three; image_only, text_only: image-text and that modality; hard: each pair answers to itself.
    terms: Literal["full", "image_text", "image_only", "text_only", "hard"] = "full"
    weights: WeightsConfig = WeightsConfig()
    similarity: SimilarityConfig = SimilarityConfig()
    tau: Positive = 1.0  # temperature of the targets
    kappa: Positive | Literal["scale"] = 1.0  # scale of the intramodal logits; "scale" ties it to the model's
    normalize: bool = True  # cosine logits; the released code leaves image-text logits unnormalised

    @pydantic.model_validator(mode="after")
    def _some_term_is_left(self) -> LossConfig:
        if not any(resolved(self.kept_weights()).values()):
            raise ValueError(f"terms: {self.terms} leaves no term with a weight above zero")
        return self

    @property
    def scoring(self) -> Literal["cosine", "dot"]:
        """How features are compared that this loss has trained."""
        return "cosine" if self.variant == "wise" and self.normalize else "dot"

    def kept_weights(self) -> WeightsConfig:
        """The weights of the terms that `terms` keeps, the others zero."""
        kept = {
            "full": {"image_image", "text_text"},
            "image_only": {"image_image"},
            "text_only": {"text_text"},
        }
        left_out = {"image_image", "text_text"} - kept.get(self.terms, set())
        return self.weights.model_copy(update=dict.fromkeys(left_out, 0.0))


class OptimConfig(Config):
    """AdamW under a cosine with linear warm-up. The paper: lr 2e-5, decay 0.01, 1 % warm-up, clip 1."""

    lr: Positive = 2e-5
    weight_decay: Weight = 0.01  # not on norms, biases and the logit scale
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: Positive = 1e-6
    warmup: float = Field(default=0.01, ge=0)  # below 1 a share of all steps, from 1 on a number of steps
    epochs: Count = 10
    steps: Count | None = None  # stops here instead, in mid-epoch if need be
    grad_clip: Weight = 1.0  # norm of the whole gradient; 0 does not clip
    micro_batch: Count | None = (
        None  # pairs of one worker that are in memory at once; the gradient stays exact
    )


class CheckpointConfig(Config):
    """When a run is saved, and which checkpoint is the best. The best and the last are kept, no others."""

    every_steps: Count | None = None  # besides the end of each epoch
    select_by: Literal["macro_f1", "loss"] = "loss"  # on `data.select`; macro_f1 is zero-shot classification


class WorkersConfig(Config):
    """Where a run works. Nothing here changes what comes out beyond float32 rounding."""

    num: Count = 1
    use_gpu: bool | Literal["auto"] = "auto"
    threads: Count = 1  # torch threads of each worker
    # Ray resources of each worker; by default one CPU, or one GPU where it uses one.
    resources: dict[str, Weight] = Field(default_factory=dict)
    max_failures: int = Field(default=3, ge=-1)  # restarts of dead workers in one call; -1 has no bound


class TrainConfig(Config):
    """One training run; its name is also that of its directory under `storage`/train."""

    name: str = Field(default="train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    model: ModelConfig = ModelConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    workers: WorkersConfig = WorkersConfig()
    log_every: Count = 10  # steps between two reports of progress
    storage: str = STORAGE

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        lanes, num, size = self.data.lanes, self.workers.num, self.data.batch_size
        if size % lanes:
            raise ValueError(f"data.batch_size ({size}) must be a multiple of data.lanes ({lanes})")
        if lanes % num:
            raise ValueError(f"data.lanes ({lanes}) must be a multiple of workers.num ({num})")
        if self.checkpoint.select_by == "macro_f1" and self.data.select is None:
            raise ValueError("checkpoint.select_by=macro_f1 needs a data.select split")
        weights, frozen = self.loss.kept_weights(), self.finetune.freeze
        reaches = {"image": weights.text_text, "text": weights.image_image}.get(frozen, 1.0)
        if not weights.image_text and not reaches:
            raise ValueError(f"finetune.freeze={frozen} leaves no term of the loss anything to learn from")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the weights: all but where the run works, what it is called and how often it saves."""
        tree = resolved(self)
        for key in ("name", "storage", "workers", "log_every"):
            del tree[key]
        del tree["checkpoint"]["every_steps"]
        del tree["finetune"]["gradient_checkpointing"]
        for key in ("shards", "loader", "decode_threads"):  # shards count by their digest, not their place
            del tree["data"][key]
        if tree["data"]["protocol"] is None:  # runs from before this option keep their identity
            del tree["data"]["protocol"]
        return tree
