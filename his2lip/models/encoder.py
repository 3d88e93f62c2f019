"""DualEncoder: an image and a text tower with their preprocessing and tokenizer, around open_clip."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import text_global_pool
from torch import nn
from torch.nn.utils import parametrize

from his2lip.config import digest
from his2lip.models.preprocess import Preprocess

# Tokenizing is pure Python; a caption corpus is small and its sentences come back every epoch.
_CACHED_CAPTIONS = 20_000


def runs_at_own_length(text_cfg: Mapping[str, Any]) -> bool:
    """Whether leaving out trailing padding leaves the features as they are, told by open_clip's `text_cfg`.

    A causal tower's features stand at the end-of-text token, which never sees what follows it; a Hugging Face
    tower is given a mask of the padding. SigLIP and CLIPA towers (`no_causal_mask`) attend to padding, `last`
    pooling reads it, and CoCa's appended class token has a place of its own: those need full length.
    """
    if text_cfg.get("hf_model_name"):
        return text_cfg.get("tokenizer_mode") != "clips"
    causal = not text_cfg.get("no_causal_mask", False)
    return causal and not text_cfg.get("embed_cls", False) and text_cfg.get("pool_type", "argmax") != "last"


class CaptionTokenizer:
    """A model's tokenizer: sentences in, int64 (B, L) out, L the longest of the batch where `cut` is set.

    `tokenizer` is one of open_clip's, `pad_id` the id that fills a row after its last token.
    """

    def __init__(self, tokenizer: Any, *, context_length: int, pad_id: int, cut: bool) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.pad_id = pad_id
        self.cut = cut
        self._rows: dict[str, torch.Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """B >= 1 sentences -> int64 (B, L); one longer than the context is cut as open_clip cuts it."""
        unseen = [c for c in dict.fromkeys(captions) if c not in self._rows]
        if unseen:
            if len(self._rows) + len(unseen) > _CACHED_CAPTIONS:
                self._rows = {c: self._rows[c] for c in captions if c in self._rows}
            full = self.tokenizer(unseen, context_length=self.context_length)
            self._rows.update(zip(unseen, full.clone().unbind(), strict=True))
        tokens = torch.stack([self._rows[c] for c in captions])
        return tokens[:, : own_length(tokens, self.pad_id)].clone() if self.cut else tokens


def own_length(tokens: torch.Tensor, pad_id: int) -> int:
    """Columns of tokens (B, L) up to the last one that is not padding; at least 1."""
    used = (tokens != pad_id).any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def distinct(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The distinct rows of tokens (B, L), and the (B,) index that puts them back; None where none repeats."""
    rows, index = torch.unique(tokens, dim=0, return_inverse=True)
    return (tokens, None) if len(rows) == len(tokens) else (rows, index)


def encode_tokens(clip: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Raw text features (B, D) of tokens (B, L) with L up to the tower's context length.

    open_clip's own text forward accepts the full length only; here the positional embedding and the causal
    mask are cut to L. Full-length batches, and towers that take any length, go through open_clip's own.
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
    """Pool type and end-of-text id, which CLIP and TextTransformer keep under different names."""
    if isinstance(tower, CLIP):
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id


Tower = Literal["image", "text"]

_BLOCK = re.compile(r"\.(?:resblocks|blocks|stages|layers?)\.(\d+)\.")
# What stands after the last block, in open_clip's, timm's and transformers' words.
_TOP = re.compile(
    r"(?:^|\.)(?:ln_post|ln_final|proj|text_projection|head|norm|fc_norm|conv_head|bn2|pooler)(?:\.|$)"
)
_EMBEDDING = re.compile(r"(?:^|\.)(?:patch_embed|embeddings)\.")  # patch_embed.proj is no projection


def tower_of(name: str) -> Tower | None:
    """The tower that an open_clip parameter belongs to; None for the logit scale and bias."""
    if name.startswith("logit_"):
        return None
    return "image" if name.startswith("visual.") else "text"


def heights(clip: nn.Module) -> dict[str, int]:
    """For each parameter, how many layers it stands below the top of its tower."""
    names = [name for name, _ in clip.named_parameters()]
    blocks = {name: int(found[1]) for name in names if (found := _BLOCK.search(f".{name}"))}
    depth = {
        tower: 1 + max((i for name, i in blocks.items() if tower_of(name) == tower), default=-1)
        for tower in ("image", "text", None)
    }
    return {name: _height(name, blocks.get(name), depth[tower_of(name)]) for name in names}


def _height(name: str, block: int | None, depth: int) -> int:
    if block is not None:
        return depth - block
    top = tower_of(name) is None or (_TOP.search(name) and not _EMBEDDING.search(name))
    return 0 if top else depth + 1


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
