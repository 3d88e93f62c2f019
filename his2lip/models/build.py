"""From an open_clip configuration to a model: architecture, weights checked by name, tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe
from torch import nn

from his2lip.errors import CheckpointError, ModelError
from his2lip.models.text import CaptionTokenizer, runs_at_own_length

HF_TEXT_FOLDER = "hf_text"  # a checkpoint's copy of the Hugging Face configuration of its text tower
_NAMED = 3  # how many tensor names an error lists


def build_clip(
    model_cfg: Mapping[str, Any], *, folder: Path | None = None, seed: int | None = None
) -> nn.Module:
    """The open_clip model of `model_cfg`, random; weights are for `load_weights` to fill in.

    folder   a checkpoint's directory: a Hugging Face text tower's configuration is read from its `hf_text`
    seed     draws the weights; None leaves torch's generator to do it
    """
    config = copy.deepcopy(dict(model_cfg))
    text, vision = config["text_cfg"], config["vision_cfg"]
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        if folder is not None and (folder / HF_TEXT_FOLDER).is_dir():
            text["hf_model_name"] = str(folder / HF_TEXT_FOLDER)
    kind = CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return kind(**config)
    except OSError as error:
        raise ModelError(
            f"the configuration of the text tower '{text.get('hf_model_name')}' is not on this machine",
            mend="connect once and load the model, so that it enters the Hugging Face cache",
        ) from error
    except (TypeError, KeyError) as error:
        raise ModelError(f"open_clip cannot build this configuration: {error}", where=folder) from error


def build_tokenizer(config: Mapping[str, Any], source: str | Path | None = None) -> CaptionTokenizer:
    """The tokenizer of `config`; `source` (a folder or hub name) is where a Hugging Face one is read."""
    text = config["text_cfg"]
    length = int(text.get("context_length", 77))
    options = text.get("tokenizer_kwargs") or {}
    cut = runs_at_own_length(text)
    if not text.get("hf_tokenizer_name"):
        simple = SimpleTokenizer(context_length=length, **options)
        return CaptionTokenizer(simple, context_length=length, pad_id=0, cut=cut)
    name = str(source or text["hf_tokenizer_name"])
    try:
        hf = HFTokenizer(name, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer '{name}' is not on this machine",
            mend="connect once and load the model, so that it enters the Hugging Face cache",
        ) from error
    pad = hf.tokenizer.pad_token_id
    return CaptionTokenizer(hf, context_length=length, pad_id=0 if pad is None else int(pad), cut=cut)


def load_weights(clip: nn.Module, state: Mapping[str, torch.Tensor], *, where: str | Path) -> None:
    """Fills `clip` with `state`; a missing, extra or misshapen tensor is a CheckpointError that names it."""
    wanted = clip.state_dict()
    missing = [n for n in wanted if n not in state]
    extra = [n for n in state if n not in wanted]
    shapes = [
        f"{n} is {tuple(state[n].shape)}, not {tuple(wanted[n].shape)}"
        for n in wanted
        if n in state and state[n].shape != wanted[n].shape
    ]
    for problem, names in (
        ("lacks", missing),
        ("has unknown tensors", extra),
        ("has misshapen tensors", shapes),
    ):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise CheckpointError(f"the checkpoint {problem}: {', '.join(names[:_NAMED])}{more}", where=where)
    clip.load_state_dict(state)


def clip_vocabulary() -> Path:
    """The byte-pair vocabulary of CLIP's tokenizer, which open_clip carries."""
    return Path(default_bpe())
