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

from his2lip.errors import ModelError
from his2lip.models.foreign import check_tensors
from his2lip.models.text import CaptionTokenizer, runs_at_own_length

HF_TEXT_FOLDER = "hf_text"  # a checkpoint's copy of the Hugging Face configuration of its text tower

# Configurations that we carry, so that BiomedCLIP loads offline, and the name that its text tower had before.
_OUR_HF_TEXT = Path(__file__).parent / "hf_text"
_RENAMED = {"BiomedNLP-PubMedBERT-base-uncased-abstract": "BiomedNLP-BiomedBERT-base-uncased-abstract"}


def build_clip(
    model_cfg: Mapping[str, Any], *, folder: Path | None = None, seed: int | None = None
) -> nn.Module:
    """The open_clip model of `model_cfg`, random; weights are for `load_weights` to fill in.

    folder   a checkpoint's directory: a Hugging Face text tower's configuration is read from its `hf_text`
    seed     draws the weights; None leaves torch's generator to do it
    """
    config = copy.deepcopy(dict(model_cfg))
    text, vision = _towers(config, folder)
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = _hf_text_source(text["hf_model_name"], folder)
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
    except (TypeError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"open_clip cannot build this configuration: {error}", where=folder) from error


def _towers(config: Mapping[str, Any], folder: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    text, vision = config.get("text_cfg"), config.get("vision_cfg")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise ModelError(
            "this configuration does not describe two towers (text_cfg, vision_cfg)", where=folder
        )
    return text, vision


def _hf_text_source(name: str, folder: Path | None) -> str:
    """Where a Hugging Face text tower's configuration is: with the checkpoint, with us, or on the hub."""
    short = name.rpartition("/")[2]
    ours = _OUR_HF_TEXT / _RENAMED.get(short, short)
    if folder is not None and (folder / HF_TEXT_FOLDER).is_dir():
        return str(folder / HF_TEXT_FOLDER)
    return str(ours) if ours.is_dir() and not Path(name).is_dir() else name


def build_tokenizer(config: Mapping[str, Any], source: str | Path | None = None) -> CaptionTokenizer:
    """Tokenizer of `config`; a Hugging Face one is read from `source` (folder or hub name) where given.

    Raises ModelError where it is missing, or is a program of its authors' (`trust_remote_code`), never run.
    """
    text = config["text_cfg"]
    length = int(text.get("context_length", 77))
    options = dict(text.get("tokenizer_kwargs") or {})
    if options.pop("trust_remote_code", False):
        raise _foreign_program(source)
    cut = runs_at_own_length(text)
    if not text.get("hf_tokenizer_name"):
        simple = SimpleTokenizer(context_length=length, **options)
        return CaptionTokenizer(simple, context_length=length, pad_id=0, cut=cut)
    name = str(source or text["hf_tokenizer_name"])
    try:
        hf = HFTokenizer(
            name,
            context_length=length,
            tokenizer_mode=text.get("tokenizer_mode"),
            trust_remote_code=False,  # left open, transformers asks at the terminal
            **options,
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise _foreign_program(name) from None
        raise ModelError(
            f"the tokenizer '{name}' is not on this machine",
            mend="connect once and load the model, so that it enters the Hugging Face cache",
        ) from error
    pad = hf.tokenizer.pad_token_id
    return CaptionTokenizer(hf, context_length=length, pad_id=0 if pad is None else int(pad), cut=cut)


def _foreign_program(where: str | Path | None) -> ModelError:
    what = "this model's tokenizer is a program of its authors', which his2lip does not run"
    return ModelError(what, where=where, mend="take a model with one of transformers' own tokenizers")


def load_weights(clip: nn.Module, state: Mapping[str, torch.Tensor], *, where: str | Path) -> None:
    """Fills `clip` with `state`; a missing, extra or misshapen tensor is a CheckpointError that names it."""
    check_tensors(state, {name: tuple(t.shape) for name, t in clip.state_dict().items()}, where=where)
    clip.load_state_dict(state)


def clip_vocabulary() -> Path:
    """The byte-pair vocabulary of CLIP's tokenizer, which open_clip carries."""
    return Path(default_bpe())
