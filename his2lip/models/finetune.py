"""Which parts of a model are trained, at which rate and memory: frozen towers, layer decay, checkpointing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from open_clip.hf_model import HFTextEncoder
from torch import nn

from his2lip.errors import ConfigError
from his2lip.models.adapters import add_heads, add_lora
from his2lip.models.encoder import DualEncoder, Tower, tower_of

# CLIP's ResNet has layer1 to layer4, and T5's encoder block.0, which has two layers of its own.
_BLOCK = re.compile(r"\.(?:(?:resblocks|blocks?|stages|layers?)\.|layer)(\d+)\.")
# The layers after the last block, under open_clip's, timm's and transformers' names.
_TOP = re.compile(
    r"(?:^|\.)(?:ln_post|ln_final|proj|text_projection|head|norm|fc_norm|conv_head|final_conv|trunk\.bn2|pooler|"
    r"attn_?pool\w*|(?:final_)?layer_norm)(?:\.|$)"
)
_EMBEDDING = re.compile(r"(?:^|\.)(?:patch_embed|embeddings)\.")  # patch_embed.proj is not a projection


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What `prepare_finetuning` changes in a model; the defaults train every weight.

    freeze                  the tower that is not trained
    lora_rank, lora_alpha   rank and alpha of low-rank adapters (`add_lora`); without a rank there are none
    heads                   whether a linear head follows each projection (`add_heads`)
    recompute               whether blocks are recomputed in the backward pass (`recompute_blocks`)
    seed                    seed of adapters and heads
    """

    freeze: Tower | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    heads: bool = False
    recompute: bool = False
    seed: int = 0


def prepare_finetuning(model: DualEncoder, chosen: FineTuning) -> None:
    """Freezes, adapts and extends `model` as chosen. Raises ConfigError where a tower cannot be."""
    if chosen.freeze is not None:
        freeze(model, chosen.freeze)
    if chosen.lora_rank is not None:
        add_lora(model, rank=chosen.lora_rank, alpha=chosen.lora_alpha, seed=chosen.seed)
    if chosen.heads:  # after the steps above, because heads are trained whatever else is frozen
        add_heads(model, seed=chosen.seed)
    if chosen.recompute:
        recompute_blocks(model)


def freeze(model: DualEncoder, tower: Tower) -> None:
    """Excludes a tower, projection included, from training: its features do not change."""
    for name, parameter in model.clip.named_parameters():
        if tower_of(name) == tower:
            parameter.requires_grad_(False)


def recompute_blocks(model: DualEncoder) -> None:
    """Gradient checkpointing (Chen et al. 2016): blocks store only their inputs and run again in backward.

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


def parameter_groups(
    model: DualEncoder, *, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: weight decay for matrices only, and lower rates for lower layers.

    A block that is d below the top of its tower is trained at layer_decay^d times the rate (Bao et al. 2022,
    BEiT). Embeddings count as one below the first block; projections and the logit scale are at the top. Each
    group has its factor as `lr_scale`, for the schedule that sets the rate. Raises ConfigError for a
    layer_decay outside (0, 1].
    """
    if not 0 < layer_decay <= 1:
        what = f"layer_decay is {layer_decay}"
        fix = "choose one above 0 and up to 1 (no decay)"
        raise ConfigError(what, key="finetune.layer_decay", fix=fix)
    below = layers_below_top(model.clip)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.clip.named_parameters():
        if parameter.requires_grad:
            key = (layer_decay ** below[name], weight_decay if parameter.ndim >= 2 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_scale": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def layers_below_top(clip: nn.Module) -> dict[str, int]:
    """For each parameter, the number of layers between it and the top of its tower."""
    names = [name for name, _ in clip.named_parameters()]
    blocks = {name: int(found[1]) for name in names if (found := _BLOCK.search(f".{name}"))}
    depth: dict[Tower | None, int] = {}
    lowest: dict[Tower | None, int] = {}
    for name, block in blocks.items():
        tower = tower_of(name)
        depth[tower] = max(depth.get(tower, 0), block + 1)
        lowest[tower] = min(lowest.get(tower, block), block)

    def below(name: str) -> int:
        tower = tower_of(name)
        if name in blocks:
            return depth[tower] - blocks[name]
        top = tower is None or (_TOP.search(name) and not _EMBEDDING.search(name))
        return 0 if top else 1 + depth.get(tower, 0) - lowest.get(tower, 0)

    return {name: below(name) for name in names}
