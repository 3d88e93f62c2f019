"""The two towers of an open_clip model as they are told by the names of its parameters."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

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
