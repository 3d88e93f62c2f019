"""Changing the input size of a model's image tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
from open_clip.model import resize_pos_embed
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from his2lip.errors import ConfigError
from his2lip.models.encoder import DualEncoder


def set_image_size(model: DualEncoder, size: int) -> None:
    """Makes `model` read images of `size` x `size` px; updates its configuration and preprocessing.

    open_clip alone can build the network from that configuration. Raises ConfigError where it could not: for
    a size that the patches do not divide, or an image tower of one fixed size.
    """
    if model.preprocess.size == (size, size):
        return
    visual: Any = model.clip.visual
    if isinstance(visual, VisionTransformer):
        _resize_native(model, visual, size)
    elif isinstance(visual, TimmModel):
        _resize_timm(model, visual, size)
    else:
        raise _size_refused(model, size, "its image tower has one fixed size")
    model.config["vision_cfg"]["image_size"] = size
    model.preprocess = replace(model.preprocess, size=(size, size))


def _resize_native(model: DualEncoder, visual: VisionTransformer, size: int) -> None:
    """Interpolates the position embeddings of open_clip's own ViT."""
    height, width = visual.patch_size
    if size % height or size % width:
        raise _size_refused(model, size, f"its patches are {height} px, which do not divide it")
    state = {"visual.positional_embedding": visual.positional_embedding.detach()}
    trainable = visual.positional_embedding.requires_grad
    visual.image_size, visual.grid_size = (size, size), (size // height, size // width)
    resize_pos_embed(state, model.clip)
    visual.positional_embedding = nn.Parameter(state["visual.positional_embedding"], requires_grad=trainable)


def _resize_timm(model: DualEncoder, visual: TimmModel, size: int) -> None:
    """A network without position embeddings reads any size; a ViT needs a timm name for this size.

    open_clip builds timm's networks by name only, at the size that belongs to the name.
    """
    if hasattr(visual.trunk, "set_input_size"):
        native, name = model.preprocess.size[0], model.config["vision_cfg"]["timm_model_name"]
        renamed = name.replace(f"_{native}", f"_{size}")
        if renamed == name or not timm.is_model(renamed):
            raise _size_refused(model, size, f"timm has no {name} of that size")
        visual.trunk.set_input_size(img_size=(size, size))
        model.config["vision_cfg"]["timm_model_name"] = renamed
    visual.image_size = (size, size)


def _size_refused(model: DualEncoder, size: int, why: str) -> ConfigError:
    what = f"'{model.name}' cannot read images of {size} px: {why}"
    fix = f"leave model.image_size out for its native {model.preprocess.size[0]} px, or choose another"
    return ConfigError(what, where="model.image_size", key="model.image_size", fix=fix)
