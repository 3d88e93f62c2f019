"""From an open_clip configuration to a model: architecture, weights checked by name, tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.coca_model import CoCa
from open_clip.model import resize_pos_embed
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe
from open_clip.transformer import VisionTransformer
from torch import nn

from his2lip.errors import ConfigError, ModelError
from his2lip.models.encoder import CaptionTokenizer, DualEncoder, runs_at_own_length
from his2lip.models.preprocess import Preprocess
from his2lip.models.weights import check_tensors

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
            fix="connect once and load the model, so that it enters the Hugging Face cache",
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
            fix="connect once and load the model, so that it enters the Hugging Face cache",
        ) from error
    pad = hf.tokenizer.pad_token_id
    return CaptionTokenizer(hf, context_length=length, pad_id=0 if pad is None else int(pad), cut=cut)


def _foreign_program(where: str | Path | None) -> ModelError:
    what = "this model's tokenizer is a program of its authors', which his2lip does not run"
    return ModelError(what, where=where, fix="take a model with one of transformers' own tokenizers")


def load_weights(clip: nn.Module, state: Mapping[str, torch.Tensor], *, where: str | Path) -> None:
    """Fills `clip` with `state`; a missing, extra or misshapen tensor is a CheckpointError that names it."""
    check_tensors(state, {name: tuple(t.shape) for name, t in clip.state_dict().items()}, where=where)
    clip.load_state_dict(state)


def clip_vocabulary() -> Path:
    """The byte-pair vocabulary of CLIP's tokenizer, which open_clip carries."""
    return Path(default_bpe())


# Convolutions learn texture from a few thousand patches, where a small ViT does not. Group norm keeps
# a patch's features apart from the rest of its batch, so that one worker and two agree. The network is one of
# timm's (an EfficientNet of 0.1 M parameters), so that open_clip alone builds it; the vocabulary is CLIP's,
# whose file open_clip carries. Mean and standard deviation are those of generated patches.
TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "timm_model_name": "test_efficientnet_gn",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}

TINY_PREPROCESS = Preprocess(size=(64, 64), mean=(0.72, 0.68, 0.77), std=(0.20, 0.21, 0.17))


def set_image_size(model: DualEncoder, size: int) -> None:
    """Makes `model` read images of `size` x `size` px, and its configuration and preprocessing say so.

    open_clip alone builds it again from that configuration. Raises ConfigError where it could not: for a size
    that the patches do not divide, or an image tower that has one size only.
    """
    if model.preprocess.size == (size, size):
        return
    visual: Any = model.clip.visual
    if isinstance(visual, VisionTransformer):
        _resize_native(model, visual, size)
    elif isinstance(visual, TimmModel):
        _resize_timm(model, visual, size)
    else:
        raise _refused(model, size, "its image tower has one size only")
    model.config["vision_cfg"]["image_size"] = size
    model.preprocess = replace(model.preprocess, size=(size, size))


def _resize_native(model: DualEncoder, visual: VisionTransformer, size: int) -> None:
    height, width = visual.patch_size
    if size % height or size % width:
        raise _refused(model, size, f"its patches are {height} px, which do not divide it")
    state = {"visual.positional_embedding": visual.positional_embedding.detach()}
    learnt = visual.positional_embedding.requires_grad
    visual.image_size, visual.grid_size = (size, size), (size // height, size // width)
    resize_pos_embed(state, model.clip)
    visual.positional_embedding = nn.Parameter(state["visual.positional_embedding"], requires_grad=learnt)


def _resize_timm(model: DualEncoder, visual: TimmModel, size: int) -> None:
    """A network without position embeddings reads any size; a ViT must have a name at this one.

    open_clip builds timm's networks by their names alone, at the size that belongs to the name.
    """
    if hasattr(visual.trunk, "set_input_size"):
        native, name = model.preprocess.size[0], model.config["vision_cfg"]["timm_model_name"]
        renamed = name.replace(f"_{native}", f"_{size}")
        if renamed == name or not timm.is_model(renamed):
            raise _refused(model, size, f"timm has no {name} of that size")
        visual.trunk.set_input_size(img_size=(size, size))
        model.config["vision_cfg"]["timm_model_name"] = renamed
    visual.image_size = (size, size)


def _refused(model: DualEncoder, size: int, why: str) -> ConfigError:
    what = f"'{model.name}' cannot read images of {size} px: {why}"
    fix = f"leave model.image_size out for its native {model.preprocess.size[0]} px, or choose another"
    return ConfigError(what, where="model.image_size", fix=fix)
