"""AdamW over the trained parameters, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from his2lip.models import DualEncoder, parameter_groups
from his2lip.training.config import OptimConfig


def build_optimizer(
    model: DualEncoder, loss: nn.Module, config: OptimConfig, *, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over the trained parameters of `model`, and of `loss` (the released hard loss has a scale)."""
    groups = parameter_groups(model, weight_decay=config.weight_decay, layer_decay=layer_decay)
    groups.append({"params": list(loss.parameters()), "lr_scale": 1.0, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, *, steps: int, config: OptimConfig) -> float:
    """The rate of `step` (from 0) of `steps`: linear warm-up to `lr`, then a half cosine to 0."""
    warmup = warmup_steps(steps, config)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


def warmup_steps(steps: int, config: OptimConfig) -> int:
    """Steps of warm-up: a share of all where `warmup` is below 1, else that many."""
    return round(config.warmup * steps) if config.warmup < 1 else min(int(config.warmup), steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets `rate` for the top of the towers, and each lower group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
