"""Captions to token ids: a model's tokenizer, and the length at which its text tower can run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe

from his2lip.errors import ModelError
from his2lip.models.remote_code import program_refused, refuse_program

# Tokenizing is pure Python; a caption corpus is small, and its sentences return in every epoch.
_CACHED_CAPTIONS = 20_000


class CaptionTokenizer:
    """A model's tokenizer: sentences to int64 (B, L), with L the longest of the batch where `cut` is set.

    `tokenizer` is one of open_clip's; `pad_id` is the id that fills a row after its last token.
    """

    def __init__(self, tokenizer: Any, *, context_length: int, pad_id: int, cut: bool) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.pad_id = pad_id
        self.cut = cut
        self._rows: dict[str, torch.Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """B >= 1 sentences to int64 (B, L); a longer one is truncated to the context as open_clip does."""
        unseen = [c for c in dict.fromkeys(captions) if c not in self._rows]
        if unseen:
            if len(self._rows) + len(unseen) > _CACHED_CAPTIONS:
                self._rows = {c: self._rows[c] for c in captions if c in self._rows}
            full = self.tokenizer(unseen, context_length=self.context_length)
            self._rows.update(zip(unseen, full.clone().unbind(), strict=True))
        tokens = torch.stack([self._rows[c] for c in captions])
        return tokens[:, : own_length(tokens, self.pad_id)].clone() if self.cut else tokens

    def too_long(self, captions: Iterable[str]) -> list[str]:
        """The captions, each once, that have more tokens than the text tower reads, so that they are cut.

        A caption is one of them where one more place would change its tokens.
        """
        distinct = list(dict.fromkeys(captions))
        if not distinct:
            return []
        whole = self.tokenizer(distinct, context_length=self.context_length)
        longer = self.tokenizer(distinct, context_length=self.context_length + 1)
        changed = (torch.nn.functional.pad(whole, (0, 1), value=self.pad_id) != longer).any(dim=1)
        return [caption for caption, cut in zip(distinct, changed.tolist(), strict=True) if cut]

    def cut_note(self, captions: Iterable[str]) -> str | None:
        """How many of the distinct captions are too long, with an example; None where none is."""
        distinct = list(dict.fromkeys(captions))
        cut = self.too_long(distinct)
        if not cut:
            return None
        counts = f"{len(cut):,} of {len(distinct):,} captions are longer than {self.context_length} tokens"
        return f"{counts} and are cut, such as '{shorten(cut[0], 80, placeholder='…')}'"


def clip_tokenizer() -> CaptionTokenizer:
    """The tokenizer of CLIP, which needs no file, at CLIP's context of 77 tokens."""
    return build_tokenizer({"text_cfg": {}})


def build_tokenizer(config: Mapping[str, Any], source: str | Path | None = None) -> CaptionTokenizer:
    """The tokenizer of open_clip's `model_cfg`; a Hugging Face one is read from `source` where given.

    source   a folder, or the name of a hub repository
    Raises ModelError where the tokenizer is missing, or is a program of its authors, which never runs.
    """
    text = config["text_cfg"]
    length = int(text.get("context_length", 77))
    options = dict(text.get("tokenizer_kwargs") or {})
    if options.pop("trust_remote_code", False):
        raise program_refused(source, key="trust_remote_code")
    cut = runs_at_own_length(text)
    if not text.get("hf_tokenizer_name"):
        simple = SimpleTokenizer(context_length=length, **options)
        return CaptionTokenizer(simple, context_length=length, pad_id=0, cut=cut)
    name = str(source or text["hf_tokenizer_name"])
    try:
        _refuse_tokenizer_program(name)
        hf = HFTokenizer(
            name,
            context_length=length,
            tokenizer_mode=text.get("tokenizer_mode"),
            trust_remote_code=False,  # without a value, transformers asks at the terminal
            **options,
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise program_refused(name, key="trust_remote_code") from None
        raise tokenizer_absent(name) from error
    pad = hf.tokenizer.pad_token_id
    return CaptionTokenizer(hf, context_length=length, pad_id=0 if pad is None else int(pad), cut=cut)


def tokenizer_absent(name: str) -> ModelError:
    """The error for a Hugging Face tokenizer that is not here."""
    fix = "load the model once with a connection, so that the tokenizer enters the Hugging Face cache"
    return ModelError(f"the tokenizer '{name}' is not on this machine", key=name, fix=fix)


def runs_at_own_length(text_cfg: Mapping[str, Any]) -> bool:
    """Whether features stay the same without trailing padding, decided from open_clip's `text_cfg`.

    A causal tower takes its features at the end-of-text token, which never sees what follows it. A Hugging
    Face tower receives a mask of the padding. Full length is needed by towers that attend to padding (SigLIP,
    CLIPA: `no_causal_mask`), by `last` pooling, which reads it, and by CoCa, whose appended class token has a
    fixed position.
    """
    if text_cfg.get("hf_model_name"):
        return text_cfg.get("tokenizer_mode") != "clips"
    causal = not text_cfg.get("no_causal_mask", False)
    return causal and not text_cfg.get("embed_cls", False) and text_cfg.get("pool_type", "argmax") != "last"


def own_length(tokens: torch.Tensor, pad_id: int) -> int:
    """Columns of tokens (B, L) up to the last one that is not padding; at least 1."""
    used = (tokens != pad_id).any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def clip_vocabulary() -> Path:
    """The byte-pair vocabulary of CLIP's tokenizer, which is part of the open_clip package."""
    return Path(default_bpe())


def _refuse_tokenizer_program(name: str) -> None:
    """Raises ModelError where the tokenizer's or the model's configuration names a program."""
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    refuse_program(get_tokenizer_config(name), where=name)
    try:
        config, _ = PretrainedConfig.get_config_dict(name)
    except OSError:  # a tokenizer does not need the model's configuration
        return
    refuse_program(config, where=name)
