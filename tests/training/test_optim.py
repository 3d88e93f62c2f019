"""Parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from his2lip.training.config import OptimConfig
from his2lip.training.optim import build_optimizer, learning_rate, warmup_steps


def test_norms_biases_and_the_logit_scale_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.6)))
    decayed, spared = build_optimizer([model], OptimConfig(weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert spared["weight_decay"] == 0.0
    assert len(spared["params"]) == 4


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(3, 4)
    model.weight.requires_grad_(False)
    groups = build_optimizer([model], OptimConfig()).param_groups
    assert [len(group["params"]) for group in groups] == [0, 1]


@given(steps=st.integers(1, 500), warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 700)))
def test_rate_rises_to_its_top_and_falls_without_a_jump(steps: int, warmup: float) -> None:
    config = OptimConfig(lr=1.0, warmup=warmup)
    rates = [learning_rate(step, steps=steps, config=config) for step in range(steps)]
    top = warmup_steps(steps, config)
    assert 0 < max(rates) <= 1.0
    assert all(a <= b for a, b in itertools.pairwise(rates[:top]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    if 0 < top < steps:
        assert rates[top - 1] == pytest.approx(1.0) == pytest.approx(rates[top])


def test_paper_schedule_at_three_points() -> None:
    config = OptimConfig(lr=2e-5, warmup=0.01)
    assert learning_rate(0, steps=1000, config=config) == pytest.approx(2e-6)
    assert learning_rate(9, steps=1000, config=config) == pytest.approx(2e-5)
    assert learning_rate(505, steps=1000, config=config) == pytest.approx(1e-5)
