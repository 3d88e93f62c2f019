"""The training-step benchmarks run, count what they say, and compare with a baseline of equal gradients."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SPEED = Path(__file__).resolve().parents[2] / "benchmarks" / "speed"


@pytest.fixture
def step_module(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(SPEED))
    import train_step

    return train_step


def test_the_released_arithmetic_has_our_gradients_and_the_flops_that_the_design_counts(step_module) -> None:
    from his2lip.models.load import load_model

    model = load_model("ViT-S-32-alt")
    gradients, counted = [], []
    for twice in (True, False):
        step = step_module.Step(model, 2, 30, twice=twice)
        counted.append(step_module.flops(step.backward))
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-3)
    assert counted[0] / counted[1] > 2


@pytest.mark.parametrize("script", ["train_step", pytest.param("gpu_step", marks=pytest.mark.slow)])
def test_the_quick_form_runs_and_writes_its_figures(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SPEED))
    out, threads = tmp_path / "result.json", torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [script, "--quick", "--threads", "1", "--out", str(out)])
    try:
        importlib.import_module(script).main()
    finally:
        torch.set_num_threads(threads)
    record = json.loads(out.read_text())
    assert record["name"] == script
    found = next(iter((record.get("by_tokens") or record["models"]).values()))
    assert found["speedup"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    ["frozen_step", "new_prompts", "many_cells", "all_cores", "growth", "zero_shot_cold", "gpu_embed",
     "gpu_loss"],
)  # fmt: skip
def test_the_quick_form_of_the_other_scripts_runs(script: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(SPEED / f"{script}.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["name"] == script
