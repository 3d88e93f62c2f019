"""Weight-space interpolation between a model and its fine-tuned self (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from open_clip import CLIPTextCfg, CLIPVisionCfg
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer

from his2lip.errors import ModelError
from his2lip.models.encoder import DualEncoder, architecture

_LISTED = 3  # settings that an error lists
_OF_THE_COPY = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
_SENTENCE = "Brown, naïve β-catenin (3,3'-DAB) of KI-67"  # its ids show case, accents and hyphens
_log = logging.getLogger(__name__)


def blend(base: DualEncoder, tuned: DualEncoder, *, alpha: float) -> DualEncoder:
    """(1 - alpha) base + alpha tuned, tensor by tensor; all else is of `tuned`.

    Where the base prepares its images or compares its features in another way, a warning says so.
    alpha in [0, 1]: 0 gives exactly the base's weights, 1 exactly the tuned ones. Raises ModelError for
    another alpha, and where the two have not the same architecture and tokenizer.
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha is {alpha}", key="alpha", fix="choose one from 0 (base) to 1 (tuned)")
    if odd := _differing(_complete(base), _complete(tuned)):
        more = f" and {len(odd) - _LISTED} more" if len(odd) > _LISTED else ""
        what = f"'{base.name}' and '{tuned.name}' differ in {', '.join(odd[:_LISTED])}{more}"
        raise ModelError(what, key=base.name, fix="blend a model with the one that it was tuned from")
    for name, differs in (
        ("comparison of features", base.similarity != tuned.similarity),
        ("preprocessing of images", base.preprocess != tuned.preprocess),
    ):
        if differs:
            _log.warning("the blend has the %s of '%s'; '%s' has another", name, tuned.name, base.name)
    result = copy.deepcopy(tuned)
    result.read_digest = None
    result.name = f"{tuned.name}-blend-{alpha:g}"
    first, second = base.clip.state_dict(), tuned.clip.state_dict()
    result.clip.load_state_dict({name: _between(first[name], second[name], alpha) for name in second})
    return result


def _complete(model: DualEncoder) -> dict[str, Any]:
    """The model's `model_cfg` with open_clip's defaults for what it leaves out, and what it only names.

    That is the Hugging Face configuration of the text tower, and the tokenizer.
    """
    config = architecture(model.config)
    towers: dict[str, Any] = {
        "vision_cfg": asdict(CLIPVisionCfg(**config["vision_cfg"])),
        "text_cfg": asdict(CLIPTextCfg(**config["text_cfg"])),
        "tokenizer": _tokens(model),
    }
    text = getattr(model.clip, "text", None)
    if isinstance(text, HFTextEncoder):
        towers["hf_text"] = {k: v for k, v in text.config.to_dict().items() if k not in _OF_THE_COPY}
    return {"quick_gelu": False, "custom_text": False} | config | towers


def _tokens(model: DualEncoder) -> dict[str, Any]:
    """What a tokenizer makes of text: its vocabulary (CLIP's is part of open_clip), and ids of a sentence."""
    tokenizer = model.tokenizer.tokenizer
    vocabulary = tokenizer.tokenizer.get_vocab() if isinstance(tokenizer, HFTokenizer) else {}
    return {"vocabulary": sorted(vocabulary.items()), "ids": model.tokenize([_SENTENCE]).tolist()}


def _differing(base: Mapping[str, Any], tuned: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of the settings that differ between two `model_cfg`."""
    odd: list[str] = []
    for key in sorted({*base, *tuned}):
        first, second = base.get(key), tuned.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            odd += _differing(first, second, f"{prefix}{key}.")
        elif first != second:
            odd.append(prefix + key)
    return odd


def _between(base: torch.Tensor, tuned: torch.Tensor, alpha: float) -> torch.Tensor:
    """Counters and index buffers are not weights: the tuned model's are used."""
    if not tuned.is_floating_point() or alpha == 1:
        return tuned
    return base.to(tuned) if alpha == 0 else torch.lerp(base.to(tuned), tuned, alpha)
