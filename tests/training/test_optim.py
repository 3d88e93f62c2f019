"""Parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from his2lip.loss import LossConfig, WISELoss
from his2lip.models.finetune import freeze
from his2lip.models.load import load_model
from his2lip.training.config import OptimConfig
from his2lip.training.optim import build_optimizer, learning_rate, set_learning_rate, warmup_steps


def test_norms_biases_and_scales_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    model, loss = load_model("tiny"), WISELoss.from_config(LossConfig(variant="released", terms="hard"))
    freeze(model, "text")
    groups = build_optimizer(model, loss, OptimConfig(weight_decay=0.1)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = {name: decay.get(id(p)) for name, p in model.clip.named_parameters()}
    assert decay[id(loss.own_scale)] == names["logit_scale"] == 0.0
    assert names["visual.head.proj.weight"] == 0.1
    assert names["visual.trunk.bn1.bias"] == 0.0
    assert names["token_embedding.weight"] is None
    assert len(decay) == 2 + sum(name.startswith("visual.") for name in names)


def test_the_schedule_gives_each_group_its_share_of_the_rate() -> None:
    optimizer = build_optimizer(load_model("tiny"), nn.Module(), OptimConfig(), layer_decay=0.5)
    set_learning_rate(optimizer, 8.0)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert {8.0, 4.0, 2.0} <= rates
    assert all(group["lr"] == 8.0 * group["lr_scale"] for group in optimizer.param_groups)


@given(steps=st.integers(1, 500), warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 700)))
def test_the_rate_rises_to_its_maximum_and_falls_without_a_jump(steps: int, warmup: float) -> None:
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
