"""The measurement of growth: its powers, the memory of a process with its children, and the page's table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/speed"))
    import growth

    return growth


def rows(sizes: list[int], power: float) -> list[dict[str, float]]:
    return [{"size": n, "median_cpu_s": 0.01 * n**power, "peak_bytes": 1e5 * n**power} for n in sizes]


def test_what_grows_with_the_square_is_not_linear_but_as_the_loss_is_defined(growth: ModuleType) -> None:
    sizes = [1_000, 10_000, 100_000]
    for power, linear in ((0.5, True), (1.0, True), (1.1, True), (1.3, False), (2.0, False)):
        found = growth.grown("check", rows(sizes, power))
        assert found["time_power"]["all"] == pytest.approx(power)
        assert found["memory_power"]["last"] == pytest.approx(power)
        assert found["linear"] == {"time": linear, "memory": linear}
        assert found["as_defined"] == linear
        assert growth.grown("wise", rows(sizes, power))["as_defined"]
    assert found["base"] == "3 sizes, 1,000 to 100,000"


def test_the_last_step_tells_growth_that_fixed_costs_hide(growth: ModuleType) -> None:
    found = growth.grown(
        "sweep",
        [
            {"size": n, "median_cpu_s": 10 + 1e-4 * n**2, "peak_bytes": 1 << 20}
            for n in (10, 100, 1_000, 4_000)
        ],
    )
    assert found["time_power"]["all"] < 1.1 < 1.5 < found["time_power"]["last"]
    assert not found["linear"]["time"]
    assert found["linear"]["memory"]


def test_the_memory_of_children_counts(growth: ModuleType) -> None:
    before = growth.family_bytes(os.getpid())
    code = "held = bytearray(b'x' * (64 << 20)); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert growth.family_bytes(os.getpid()) - before > 60 << 20
        child.communicate("\n")


def test_the_page_has_the_table_of_the_committed_result(growth: ModuleType) -> None:
    result = json.loads((ROOT / "benchmarks/results/growth.json").read_text(encoding="utf-8"))
    page = growth.PAGE.read_text(encoding="utf-8")
    assert growth.with_table(page, growth.table(result["parts"])) == page
    assert growth.PICTURE.is_file()
    assert set(result["parts"]) == set(growth.PARTS)
