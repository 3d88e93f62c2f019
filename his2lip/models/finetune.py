"""What of a model learns, and how fast: frozen towers, learning rates by depth, low-rank adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from his2lip.errors import ConfigError
from his2lip.models.encoder import DualEncoder

Tower = Literal["image", "text"]

_BLOCK = re.compile(r"\.(?:resblocks|blocks|stages|layers?)\.(\d+)\.")
# What stands after the last block, in open_clip's, timm's and transformers' words.
_TOP = re.compile(r"(ln_post|ln_final|proj|text_projection|head|norm|fc_norm|pooler)(\.|$)")
# The matrices of a transformer block that adapters go into.
_ADAPTED = re.compile(r"(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_fc\.weight|mlp\.c_proj\.weight)$")


def tower_of(name: str) -> Tower | None:
    """The tower that an open_clip parameter belongs to; None for the logit scale and bias."""
    if name.startswith("logit_"):
        return None
    return "image" if name.startswith("visual.") else "text"


def freeze(model: DualEncoder, *, image: bool = False, text: bool = False) -> None:
    """Keeps a whole tower, projection included, as it is: its features stay what they were."""
    frozen = {"image": image, "text": text}
    for name, parameter in model.clip.named_parameters():
        if frozen.get(tower_of(name) or "", False):
            parameter.requires_grad_(False)


def parameter_groups(
    model: DualEncoder, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: matrices decay, vectors do not, layers near the top learn faster.

    A block that is d below the top of its tower learns at lr x layer_decay^d (Bao et al. 2022, BEiT);
    embeddings come below the first block, projections and the logit scale at the top. Each group keeps its
    factor as `lr_scale`, for a schedule that sets the rate.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay is {layer_decay}", mend="choose one above 0 and up to 1 (no decay)")
    trained = [(n, p) for n, p in model.clip.named_parameters() if p.requires_grad]
    heights = _heights(model.clip)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trained:
        groups.setdefault((heights[name], parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * layer_decay**below,
            "lr_scale": layer_decay**below,
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (below, matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def add_lora(model: DualEncoder, *, rank: int, alpha: float | None = None, seed: int = 0) -> None:
    """Low-rank adapters (Hu et al. 2022) on the attention and MLP matrices of every transformer block.

    W becomes W + (alpha / rank) B A, with A drawn from `seed` and B zero: nothing changes before training.
    alpha is `rank` unless given. W itself and everything else but the logit scale are frozen. Checkpoints
    hold the merged W under open_clip's names. Raises ConfigError where the towers have no such matrix.
    """
    if rank < 1:
        raise ConfigError(f"the rank of the adapters is {rank}", mend="choose 1 or more, such as 8")
    places = [(module, name) for module, name, full in _matrices(model.clip) if _ADAPTED.search(full)]
    if not places:
        raise ConfigError(f"'{model.name}' has no open_clip transformer to put adapters into")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.clip.named_parameters():
        parameter.requires_grad_(name == "logit_scale")
    for module, name in places:
        weight = getattr(module, name)
        adapter = LowRank(weight, rank, (alpha or rank) / rank, generator)
        parametrize.register_parametrization(module, name, adapter)


def merge_lora(model: DualEncoder) -> None:
    """Folds adapters into their matrices; the model is then a plain open_clip model again."""
    for module in list(model.clip.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


class LowRank(nn.Module):
    """weight (R, C) -> weight + scale B A, with A (rank, C) and B (R, rank) trainable."""

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.randn(rank, columns, generator=generator) * columns**-0.5
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(torch.zeros(rows, rank).to(weight))
        self.scale = scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The adapted matrix."""
        return weight + self.scale * (self.b @ self.a)


def _matrices(root: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Every parameter of two dimensions: its module, its name there, its full name."""
    for prefix, module in list(root.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 2:
                yield module, name, f"{prefix}.{name}"


def _heights(clip: nn.Module) -> dict[str, int]:
    """For each parameter, how many layers it stands below the top of its tower."""
    names = [name for name, _ in clip.named_parameters()]
    blocks = {name: int(found[1]) for name in names if (found := _BLOCK.search(f".{name}"))}
    heights = {}
    for name in names:
        tower = tower_of(name)
        depth = 1 + max((i for other, i in blocks.items() if tower_of(other) == tower), default=-1)
        top = tower is None or (name not in blocks and _TOP.search(name))
        heights[name] = 0 if top else depth - blocks[name] if name in blocks else depth + 1
    return heights
