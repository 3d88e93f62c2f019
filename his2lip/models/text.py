"""Captions to tokens to features, at the batch's own length where the text tower allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip import CLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import text_global_pool
from torch import nn

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
