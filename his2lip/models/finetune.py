"""What of a model learns, how fast and at which memory: frozen towers, rates by depth, recomputed blocks."""

from __future__ import annotations

from typing import Any

from open_clip.hf_model import HFTextEncoder
from torch import nn

from his2lip.errors import ConfigError
from his2lip.models.encoder import DualEncoder
from his2lip.models.towers import heights, tower_of


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
        raise ConfigError(f"layer_decay is {layer_decay}", mend="choose one above 0 and up to 1 (no decay)")
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
