"""DualEncoder: an image tower and a text tower with their preprocessing and tokenizer, around open_clip."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import text_global_pool
from torch import nn
from torch.nn.utils import parametrize

from his2lip.config import digest
from his2lip.errors import ConfigError
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import Similarity
from his2lip.models.tokenizer import CaptionTokenizer
from his2lip.models.transfer import send

Tower = Literal["image", "text"]
Precision = Literal["fp32", "bf16"]


class DualEncoder(nn.Module):
    """Encodes images and captions into features of one space.

    clip        the open_clip model; its state dict is what a checkpoint stores
    name        the name under which the user loaded it
    config      open_clip's `model_cfg`: the complete architecture, JSON-able
    precision   bf16 runs the towers under autocast; weights and features stay float32. `lowered` is faster
    similarity  how features of this model are compared: cosine, or dot for released models
    """

    def __init__(
        self,
        clip: nn.Module,
        *,
        name: str,
        config: Mapping[str, Any],
        preprocess: Preprocess,
        tokenizer: CaptionTokenizer,
        precision: Precision = "fp32",
        similarity: Similarity = "cosine",
    ) -> None:
        super().__init__()
        self.clip = clip
        self.name = name
        self.config: dict[str, Any] = copy.deepcopy(dict(config))
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.precision: Precision = precision
        self.similarity: Similarity = similarity
        self._lowered_from: str | None = None  # tensor digest of the weights before they were converted
        self.read_digest: str | None = None
        """The tensor digest of the checkpoint that was read, which its weights had; they may change later."""

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale of the logits, a trainable scalar."""
        return self.clip.logit_scale  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.logit_scale.device

    @property
    def dim(self) -> int:
        """D, the width of the shared space."""
        return int(self.config["embed_dim"])

    def train(self, mode: bool = True) -> Self:
        """Training mode, except in frozen parts: these apply no dropout and keep their batch statistics.

        A tower of which only the head is trained (`adapters.Head`) is frozen.
        """
        super().train(mode)
        for part in self.clip.children():
            inside = [module for module in part.modules() if not getattr(module, "above_tower", False)]
            trained = [p.requires_grad for module in inside for p in module.parameters(recurse=False)]
            if trained and not any(trained):
                part.eval()
        return self

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """B sentences to int64 (B, L) on the CPU, L the longest of them where the tower allows that."""
        return self.tokenizer(captions)

    def encode_image(self, images: torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
        """Preprocessed images, float (B, 3, H, W), to float32 (B, D); raw if not `normalize`."""
        with self._autocast():
            features = self.clip.encode_image(images.to(self.device, self._inputs))  # type: ignore[operator]
        return _finish(features, normalize)

    def encode_text(self, text: Sequence[str] | torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
        """B sentences, or their tokens int64 (B, L), to float32 (B, D); repeated ones are encoded once."""
        tokens = text if isinstance(text, torch.Tensor) else self.tokenize(text)
        rows, index = distinct(tokens)
        with self._autocast():
            features = encode_tokens(self.clip, send(rows, self.device))
        if index is not None:
            features = features[send(index, self.device)]
        return _finish(features, normalize)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float (B, 3, H, W) and tokens int64 (B, L) to raw features, float32 (B, D) each."""
        return self.encode_image(images, normalize=False), self.encode_text(tokens, normalize=False)

    def tensor_digest(self) -> str:
        """sha256 over the names, dtypes, shapes and bytes of all weights, in the order of their names.

        That of a `lowered` model is the digest of the weights it was made from.
        """
        return self._lowered_from or tensor_digest(plain_state(self.clip))

    def config_digest(self) -> str:
        """sha256 of the architecture: the same tensors under quick and exact GELU are two models."""
        return digest(architecture(self.config))

    def lowered(self) -> DualEncoder:
        """This model for inference: in bf16 a copy with weights in bf16, which is not trained; else itself.

        Autocast converts all weights again in every call. On a CPU they are then copied for each image,
        because torch multiplies a batch by one product only where weights ask for gradients. Features stay
        float32. Towers that are not open_clip's own may contain other dtypes; they keep autocast.
        """
        if self.precision == "fp32" or self._lowered_from or not isinstance(self.clip, CLIP | CustomTextCLIP):
            return self
        tensors = self.tensor_digest()
        model = copy.copy(self)
        with torch.inference_mode(False):
            model._modules = {"clip": copy.deepcopy(self.clip).to(torch.bfloat16).requires_grad_()}
        model._lowered_from = tensors
        return model.eval()

    @property
    def arithmetic(self) -> str:
        """What decides features besides weights and architecture: fp32, bf16 (autocast), bf16 weights."""
        return "bf16 weights" if self._lowered_from else self.precision

    @property
    def _inputs(self) -> torch.dtype | None:
        """The dtype of images that the towers ask for; None where they take any."""
        return torch.bfloat16 if self._lowered_from else None

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return float32_convolutions() if self.device.type == "cuda" else contextlib.nullcontext()
        if self._lowered_from:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def resolve_precision(asked: Literal["auto", "fp32", "bf16"], device: torch.device, *, key: str) -> Precision:
    """The precision that a user asked for; auto: bf16 on a GPU that supports it, else fp32.

    Raises ConfigError, with the option as `key`, for bf16 on a GPU that has none.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        return "bf16" if has_bf16 else "fp32"
    if asked == "bf16" and device.type == "cuda" and not has_bf16:
        fix = "set it to auto or fp32"
        raise ConfigError("this GPU does not support bf16", where=key, key=key, fix=fix)
    return asked


def float32_convolutions() -> contextlib.AbstractContextManager[Any]:
    """cuDNN computes convolutions in float32, not in TF32 (10 bits of mantissa), which is torch's default."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        benchmark_limit=cudnn.benchmark_limit,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )


def plain_state(clip: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under open_clip's names, with adapters (if any) folded into their matrices."""
    state = clip.state_dict()
    for prefix, module in clip.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for name in module.parametrizations:
            inner = f"{prefix}.parametrizations.{name}.".lstrip(".")
            state = {k: v for k, v in state.items() if not k.startswith(inner)}
            state[f"{prefix}.{name}".lstrip(".")] = getattr(module, name).detach()
    return state


def tensor_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over sorted names, dtypes, shapes and bytes of a state dict."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        whole.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without the flags for the source of initial weights, which do not change a forward pass."""
    kept = copy.deepcopy(dict(config))
    for tower in ("vision_cfg", "text_cfg"):
        for flag in ("timm_model_pretrained", "hf_model_pretrained"):
            kept[tower].pop(flag, None)
    return kept


def tower_of(name: str) -> Tower | None:
    """The tower of an open_clip parameter; None for the logit scale and bias."""
    if name.startswith("logit_"):
        return None
    return "image" if name.startswith("visual.") else "text"


def distinct(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The distinct rows of tokens (B, L), and the index (B,) that restores them; None if none repeats."""
    rows, index = torch.unique(tokens, dim=0, return_inverse=True)
    return (tokens, None) if len(rows) == len(tokens) else (rows, index)


def encode_tokens(clip: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Raw text features (B, D) of tokens (B, L), L at most the tower's context length.

    open_clip's own text forward accepts the full length only. Here the positional embedding and the causal
    mask are cut to L. Full-length batches, and towers that accept any length, use open_clip's own forward.
    """
    tower: Any = clip if isinstance(clip, CLIP) else clip.text
    length = tokens.shape[1]
    if isinstance(tower, HFTextEncoder) or length == tower.context_length:
        return clip.encode_text(tokens)  # type: ignore[operator]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    pool, eos = _pooling(tower)
    x = text_global_pool(x, tokens, pool, eos_token_id=eos)
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _pooling(tower: Any) -> tuple[str, int | None]:
    """Pool type and end-of-text id, which CLIP and TextTransformer store under different names."""
    if isinstance(tower, CLIP):
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id


def _finish(features: torch.Tensor, normalize: bool) -> torch.Tensor:
    features = features.float()
    return F.normalize(features, dim=-1) if normalize else features
