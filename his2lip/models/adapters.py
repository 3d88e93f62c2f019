"""Low-rank adapters and projection heads: trained beside a model's matrices, and folded into them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from his2lip.errors import ConfigError
from his2lip.models.encoder import DualEncoder, plain_state, tower_of

# The matrices of a transformer block that receive adapters, as open_clip, timm and transformers name them.
_ADAPTED = re.compile(
    r"\.(?:resblocks|blocks|layers?)\.\d+\.(?:"
    r"attn\.(?:in_proj_weight|(?:out_proj|qkv|proj)\.weight)|mlp\.(?:c_fc|c_proj|fc1|fc2)\.weight|"
    r"attention\.self\.(?:query|key|value)\.weight|(?:attention\.output|intermediate|output)\.dense\.weight)$"
)


def add_lora(model: DualEncoder, *, rank: int, alpha: float | None = None, seed: int = 0) -> None:
    """Low-rank adapters (Hu et al. 2022) on the attention and MLP matrices of every transformer block.

    W becomes W + (alpha / rank) B A, with A drawn from `seed` and B zero, so that nothing changes before
    training. `alpha` defaults to `rank`. Towers that are already frozen receive none. W itself and everything
    else except the logit scale are frozen. Raises ConfigError where a trained tower has no such matrix.
    """
    if rank < 1:
        what = f"the rank of the adapters is {rank}"
        raise ConfigError(what, key="finetune.lora.rank", fix="choose 1 or more, such as 8")
    if alpha is not None and alpha <= 0:
        what = f"alpha of the adapters is {alpha}"
        raise ConfigError(what, key="finetune.lora.alpha", fix="choose a number above 0, such as the rank")
    trained = {name: p for name, p in model.clip.named_parameters() if p.requires_grad}
    names = [name for name, p in trained.items() if p.ndim == 2 and _ADAPTED.search(f".{name}")]
    adapted_towers = {tower_of(name) for name in names}
    for tower in sorted(filter(None, map(tower_of, trained))):
        if tower not in adapted_towers:
            what = f"the {tower} tower of '{model.name}' has no transformer block for adapters"
            fix = f"freeze it (finetune.freeze={tower}), or leave finetune.lora out"
            raise ConfigError(what, key="finetune.lora", fix=fix)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.clip.named_parameters():
        parameter.requires_grad_(name == "logit_scale")
    for name in names:
        module, leaf = _owner(model.clip, name)
        factor = (rank if alpha is None else alpha) / rank
        adapter = LowRank(getattr(module, leaf), rank, factor, generator)
        parametrize.register_parametrization(module, leaf, adapter)


def add_heads(model: DualEncoder, *, seed: int = 0) -> None:
    """A D x D head without bias after each tower's projection, drawn from `seed` like torch's linear layer.

    The released code trains such heads from random weights (design section 9). They are trained in any case,
    also after a frozen tower. Raises ConfigError where a tower does not end in a projection without a bias.
    """
    generator = torch.Generator().manual_seed(seed)
    for tower, (module, leaf) in _projections(model).items():
        if getattr(module, "bias", None) is not None:
            what = (
                f"the projection of the {tower} tower of '{model.name}' has a bias, so no head can follow it"
            )
            raise _no_head(what)
        head = Head(
            getattr(module, leaf), model.dim, first=isinstance(module, nn.Linear), generator=generator
        )
        parametrize.register_parametrization(module, leaf, head)


def merge(model: DualEncoder) -> None:
    """Folds adapters and heads into their matrices; the model is then a plain open_clip model again."""
    for module in list(model.clip.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def unmerged_state(model: DualEncoder) -> dict[str, torch.Tensor]:
    """What a checkpoint stores folded: adapters and heads, and the matrices that they change, by name."""
    plain = plain_state(model.clip)
    return {name: tensor for name, tensor in model.clip.state_dict().items() if name not in plain}


class LowRank(nn.Module):
    """weight (R, C) -> weight + factor B A, with A (rank, C) and B (R, rank) trainable."""

    def __init__(self, weight: torch.Tensor, rank: int, factor: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.randn(rank, columns, generator=generator) * columns**-0.5
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(torch.zeros(rows, rank).to(weight))
        self.factor = factor

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The adapted matrix (R, C)."""
        return weight + self.factor * (self.b @ self.a)


class Head(nn.Module):
    """A projection to D features -> the same followed by a linear D x D head, in the projection's shape.

    first  whether D is the projection's first dimension (a linear layer's weight) or its last (open_clip's)
    """

    above_tower = True  # for `DualEncoder.train`

    def __init__(
        self, projection: torch.Tensor, dim: int, *, first: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        drawn = (2 * torch.rand(dim, dim, generator=generator) - 1) * dim**-0.5
        self.head = nn.Parameter(drawn.to(projection))
        self.first = first

    def forward(self, projection: torch.Tensor) -> torch.Tensor:
        """The folded projection."""
        return self.head @ projection if self.first else projection @ self.head.t()


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module of a parameter, and the parameter's name in it."""
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf


def _projections(model: DualEncoder) -> dict[str, tuple[nn.Module, str]]:
    """The last matrix of each tower: a bare parameter of open_clip's, or the weight of a linear layer."""
    clip: Any = model.clip
    return {
        "image": _projection(model, "image", clip.visual, ("proj", "head")),
        "text": _projection(model, "text", getattr(clip, "text", clip), ("text_projection", "proj")),
    }


def _projection(
    model: DualEncoder, tower: str, module: nn.Module, names: tuple[str, ...]
) -> tuple[nn.Module, str]:
    for name in names:
        found = getattr(module, name, None)
        if isinstance(found, nn.Parameter):
            return module, name
        linear = [m for m in found.modules() if isinstance(m, nn.Linear)] if found is not None else []
        if linear:
            return linear[-1], "weight"
    raise _no_head(f"the {tower} tower of '{model.name}' does not end in a projection that a head can follow")


def _no_head(what: str) -> ConfigError:
    return ConfigError(what, key="finetune.projection", fix="set finetune.projection to none")
