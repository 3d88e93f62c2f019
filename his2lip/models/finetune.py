"""What of a model learns, how fast and at which memory: frozen towers, rates by depth, recomputed blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from torch import nn
from torch.nn.utils import parametrize

from his2lip.errors import ConfigError
from his2lip.models.checkpoint import broken_state
from his2lip.models.encoder import DualEncoder, heights, plain_state, tower_of


def freeze(model: DualEncoder, *, image: bool = False, text: bool = False) -> None:
    """Keeps a whole tower, projection included, as it is: its features stay what they were."""
    frozen = {"image": image, "text": text}
    for name, parameter in model.clip.named_parameters():
        if frozen.get(tower_of(name) or "", False):
            parameter.requires_grad_(False)


def train_mode(model: DualEncoder) -> None:
    """Training mode, but for parts that are frozen: no dropout there, and no new batch statistics."""
    model.train()
    for part in model.clip.children():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


def parameter_groups(
    model: DualEncoder, *, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: matrices decay, vectors do not, layers near the top learn faster.

    A block that is d below the top of its tower learns at layer_decay^d times the rate (Bao et al. 2022,
    BEiT); embeddings come below the first block, projections and the logit scale at the top. Each group has
    its factor as `lr_scale`, for the schedule that sets the rate.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay is {layer_decay}", fix="choose one above 0 and up to 1 (no decay)")
    below = heights(model.clip)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.clip.named_parameters():
        if parameter.requires_grad:
            key = (layer_decay ** below[name], weight_decay if parameter.ndim >= 2 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def recompute_blocks(model: DualEncoder) -> None:
    """Gradient checkpointing (Chen et al. 2016): blocks keep their inputs alone, and run again backwards.

    The gradient stays the same, dropout included; a step takes about a third longer.
    """
    model.clip.visual.set_grad_checkpointing(True)  # type: ignore[union-attr, operator]
    text: Any = getattr(model.clip, "text", model.clip)
    if isinstance(text, HFTextEncoder):
        # Not open_clip's own switch: it leaves the variant to transformers, and the older one of two gives no
        # gradient where a block's input needs none (frozen embeddings under adapters).
        network = text.transformer  # transformers renamed the switch in 5.x
        switch = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
        switch({"use_reentrant": False})
    else:
        text.transformer.grad_checkpointing = True


# The matrices of a transformer block that adapters go into, in open_clip's, timm's and transformers' words.
_ADAPTED = re.compile(
    r"\.(?:resblocks|blocks|layers?)\.\d+\.(?:"
    r"attn\.(?:in_proj_weight|(?:out_proj|qkv|proj)\.weight)|mlp\.(?:c_fc|c_proj|fc1|fc2)\.weight|"
    r"attention\.self\.(?:query|key|value)\.weight|(?:attention\.output|intermediate|output)\.dense\.weight)$"
)


def add_lora(model: DualEncoder, *, rank: int, alpha: float | None = None, seed: int = 0) -> None:
    """Low-rank adapters (Hu et al. 2022) on the attention and MLP matrices of every transformer block.

    W becomes W + (alpha / rank) B A, with A drawn from `seed` and B zero: nothing changes before training.
    alpha is `rank` unless given. Towers that are frozen already get none; W itself and everything else but
    the logit scale are frozen. Raises ConfigError where a tower that is to learn has no such matrix.
    """
    if rank < 1:
        raise ConfigError(f"the rank of the adapters is {rank}", fix="choose 1 or more, such as 8")
    if alpha is not None and alpha <= 0:
        raise ConfigError(f"alpha of the adapters is {alpha}", fix="choose one above 0, such as the rank")
    learning = {name: p for name, p in model.clip.named_parameters() if p.requires_grad}
    names = [name for name, p in learning.items() if p.ndim == 2 and _ADAPTED.search(f".{name}")]
    reached = {tower_of(name) for name in names}
    for tower in sorted(filter(None, map(tower_of, learning))):
        if tower not in reached:
            what = f"the {tower} tower of '{model.name}' has no transformer block to put adapters into"
            raise ConfigError(what, fix=f"freeze it (finetune.freeze={tower}), or leave finetune.lora out")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.clip.named_parameters():
        parameter.requires_grad_(name == "logit_scale")
    for name in names:
        module, leaf = _owner(model.clip, name)
        scale = (rank if alpha is None else alpha) / rank
        parametrize.register_parametrization(
            module, leaf, LowRank(getattr(module, leaf), rank, scale, generator)
        )


def add_heads(model: DualEncoder, *, seed: int = 0) -> None:
    """A bias-free D x D head after each tower's projection, drawn from `seed` as torch draws a linear layer.

    The released code trains such heads from random weights (design section 9). They learn in any case, over
    a frozen tower too. Raises ConfigError where a tower does not end in a projection without a bias.
    """
    generator = torch.Generator().manual_seed(seed)
    for tower, (module, leaf) in _projections(model).items():
        if getattr(module, "bias", None) is not None:
            what = f"the projection of the {tower} tower of '{model.name}' has a bias, which takes no head"
            raise ConfigError(what, fix="set finetune.projection to none")
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
    """What a checkpoint holds folded: adapters and heads, and the matrices that they act on, by name."""
    plain = plain_state(model.clip)
    return {name: tensor for name, tensor in model.clip.state_dict().items() if name not in plain}


def restore_unmerged(model: DualEncoder, saved: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `unmerged_state`, for a model with the same adapters and heads; else CheckpointError."""
    wanted = unmerged_state(model)
    odd = [name for name in {**wanted, **saved} if name not in wanted or name not in saved]
    if odd:
        raise broken_state(f"it and this run's finetune section disagree on '{odd[0]}'")
    model.clip.load_state_dict(dict(saved), strict=False)


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


class Head(nn.Module):
    """A projection to D features -> the same with a linear D x D head after it, of the same shape.

    first  whether the projection's first dimension is D (a linear layer's weight) or its last (open_clip's)
    """

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
    """The module that a parameter belongs to, and its name there."""
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf


def _projections(model: DualEncoder) -> dict[str, tuple[nn.Module, str]]:
    """Where each tower's last matrix is: a bare parameter of open_clip's, or a linear layer."""
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
    what = f"the {tower} tower of '{model.name}' does not end in a projection that could take a head"
    raise ConfigError(what, fix="set finetune.projection to none")
