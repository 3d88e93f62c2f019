"""DualEncoder: an image and a text tower with their preprocessing and tokenizer, around open_clip."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from his2lip.config import digest
from his2lip.models.preprocess import Preprocess
from his2lip.models.text import CaptionTokenizer, distinct, encode_tokens

Precision = Literal["fp32", "bf16"]
Similarity = Literal["cosine", "dot"]


class DualEncoder(nn.Module):
    """Images and captions to features of one space.

    clip        the open_clip model (its state dict is what a checkpoint holds)
    name        what the user called it
    config      open_clip's `model_cfg`: architecture, complete and JSON-able
    precision   bf16 runs the towers under autocast; weights and features stay float32
    similarity  how this model's features are meant to be compared: ours by cosine, released ones by dot
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

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale of the logits, a trainable scalar."""
        return self.clip.logit_scale  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    @property
    def dim(self) -> int:
        """D, the width of the shared space."""
        return int(self.config["embed_dim"])

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """B sentences -> int64 (B, L) on the CPU, cut to the longest of them where the tower allows."""
        return self.tokenizer(captions)

    def encode_image(self, images: torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
        """float (B, 3, H, W) as `preprocess` gives them -> float32 (B, D), raw where not `normalize`."""
        with self._autocast():
            features = self.clip.encode_image(images.to(self.device))  # type: ignore[operator]
        return _finish(features, normalize)

    def encode_text(self, text: Sequence[str] | torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
        """B sentences, or their tokens int64 (B, L) -> float32 (B, D); repeated ones are encoded once."""
        tokens = text if isinstance(text, torch.Tensor) else self.tokenize(text)
        rows, index = distinct(tokens)
        with self._autocast():
            features = encode_tokens(self.clip, rows.to(self.device))
        if index is not None:
            features = features[index.to(features.device)]
        return _finish(features, normalize)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float (B, 3, H, W), int64 (B, L) -> raw image and text features, float32 (B, D) each."""
        return self.encode_image(images, normalize=False), self.encode_text(tokens, normalize=False)

    def tensor_digest(self) -> str:
        """sha256 over the names, dtypes, shapes and bytes of all weights, in the order of their names."""
        return tensor_digest(plain_state(self.clip))

    def config_digest(self) -> str:
        """sha256 of the architecture: the same tensors under quick and exact GELU are two models."""
        return digest(architecture(self.config))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def plain_state(clip: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under open_clip's names; adapters, if any, are folded into their matrices."""
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
    """`config` without the flags that say where first weights come from, which do not change a forward."""
    kept = copy.deepcopy(dict(config))
    for tower in ("vision_cfg", "text_cfg"):
        for flag in ("timm_model_pretrained", "hf_model_pretrained"):
            kept[tower].pop(flag, None)
    return kept


def _finish(features: torch.Tensor, normalize: bool) -> torch.Tensor:
    features = features.float()
    return F.normalize(features, dim=-1) if normalize else features
