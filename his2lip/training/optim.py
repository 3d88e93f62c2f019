"""AdamW without decay where it does harm, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from his2lip.training.config import OptimConfig


def build_optimizer(modules: Sequence[nn.Module], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; vectors and scalars (norms, biases, logit scale) do not decay."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
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
    for group in optimizer.param_groups:
        group["lr"] = rate
