"""The line that a run or a benchmark starts with: time, disk, and price on a cluster of cluster.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from his2lip.cli.estimates import duration, show_estimate, show_grid_estimate
from his2lip.cloud import budget_left, usd_per_hour
from his2lip.cloud.budget_guard import Machine, Record
from his2lip.evaluation import GridEstimate
from his2lip.training import RunEstimate, TrainConfig, gpus_of_run
from his2lip.tuning import SweepConfig, gpus_of_sweep

CLUSTER = Path(__file__).resolve().parents[1] / "cluster.yaml"
KNOWN = RunEstimate(steps=3600, seconds=7200.0, based_on="before", bytes=3 * 10**9, best=10**9, free=10**10)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a head whose machines have cost 21 of 300 USD."""
    tree = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    budget = tree["metadata"]["budget"]
    budget["record"] = str(tmp_path / "budget.json")
    assert budget["usd_per_hour"] == {"m7i.xlarge": 0.21, "g6.2xlarge": 1.0, "g6e.12xlarge": 10.6}
    ended = Machine("i-1", "m7i.xlarge", "head", 0.0, 100 * 3600.0)
    Record({"i-1 0": ended}).write(tmp_path / "budget.json")
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    return tmp_path


@pytest.mark.parametrize(
    ("gpus", "least", "most"), [(1, 1.0, 10.6), (2, 2.0, 10.6), (4, 4.0, 10.6), (5, 5.0, 21.2)]
)
def test_the_price_ranges_over_the_node_types_with_so_many_gpus(
    head: Path, gpus: int, least: float, most: float
) -> None:
    file = head / "ray_bootstrap_config.yaml"
    tree = yaml.safe_load(file.read_text())
    del tree["available_node_types"][tree["head_node_type"]]["resources"]
    file.write_text(yaml.safe_dump(tree))
    assert usd_per_hour(gpus) == (least, most)


def test_what_is_left_of_the_budget_follows_from_the_guards_record(head: Path) -> None:
    assert budget_left() == pytest.approx(279.0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("budget.json", '{"cut off'),
        ("ray_bootstrap_config.yaml", '{"cut off'),
        ("ray_bootstrap_config.yaml", "metadata: {budget: {usd: [300], record: r, usd_per_hour: {}}}"),
        ("ray_bootstrap_config.yaml", "metadata: {budget: {usd: 300, record: r, usd_per_hour: {a: 1}}}"),
    ],
)
def test_a_budget_that_cannot_be_read_stops_no_run(
    head: Path, file: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (head / file).write_text(text)
    assert budget_left() is None
    show_estimate(KNOWN, gpus=4)
    assert "3,600 steps" in capsys.readouterr().out


@pytest.mark.usefixtures("head")
def test_on_a_cluster_the_line_has_time_disk_and_price(capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(KNOWN, gpus=4)
    line = " ".join(capsys.readouterr().out.split())
    for part in (
        "3,600 steps",
        "2.0 h",
        "'before'",
        "3.0 GB of the 10.0 GB",
        "8.00 to 21.20 USD",
        "279.00 USD",
    ):
        assert part in line


@pytest.mark.usefixtures("head")
def test_workers_without_gpus_are_not_told_to_be_free(capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(KNOWN, gpus=0)
    line = " ".join(capsys.readouterr().out.split())
    assert "price not known" in line
    assert " 0.00 USD" not in line


@pytest.mark.parametrize(
    ("here", "workers", "sweep", "run_gpus", "sweep_gpus"),
    [
        (4.0, {"num": 4}, {}, 4, 12),  # trials with workers of their own: three at once
        (4.0, {"num": 1}, {}, 1, 3),
        (2.0, {"num": 1}, {}, 1, 2),  # three trials share two GPUs
        (0.0, {"num": 1}, {}, 0, 0),
        (0.0, {"num": 1, "use_gpu": True}, {"gpus": 0.5}, 1, 2),
        (4.0, {"num": 1, "use_gpu": False}, {}, 0, 0),
    ],
)
def test_auto_is_priced_as_the_run_resolves_it(
    here: float,
    workers: dict[str, Any],
    sweep: dict[str, Any],
    run_gpus: int,
    sweep_gpus: int,
) -> None:
    resources = {"CPU": 16.0, "GPU": here}
    base = TrainConfig.model_validate(
        {"name": "a", "model": {"backbone": "tiny"}, "data": {"shards": "s"}, "workers": workers}
    )
    asked = SweepConfig.model_validate(
        {
            "name": "a",
            "train": {"workers": workers},
            "space": {"optim.lr": {"kind": "log", "low": 1e-5, "high": 1e-3}},
            "trials": 6,
            "max_concurrent": 3,
            **sweep,
        }
    )
    assert gpus_of_run(base, resources) == run_gpus
    assert gpus_of_sweep(asked, base, resources) == sweep_gpus


def test_on_a_laptop_there_is_no_price_and_too_little_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert usd_per_hour(1) is None
    show_estimate(KNOWN, gpus=1, trials=20, at_once=2, kept=20)
    line = " ".join(capsys.readouterr().out.split())
    for part in ("20 trials of 3,600 steps", "20.0 h", "20.0 GB", "NOT enough"):
        assert part in line
    assert "USD" not in line
    show_estimate(KNOWN, gpus=1, trials=20, at_once=2, kept=3)
    line = " ".join(capsys.readouterr().out.split())
    assert "20 trials of 3,600 steps" in line
    assert "3.0 GB of the 10.0 GB" in line
    assert "NOT enough" not in line, "checkpoints of the other trials are removed when they end"


def test_without_an_earlier_run_it_says_so_and_a_finished_run_has_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_estimate(RunEstimate(10, None, None, None, None, 10**9), gpus=0)
    assert "not known" in capsys.readouterr().out
    show_estimate(RunEstimate(0, 0.0, "before", 0, 0, 10**9), gpus=0)
    assert capsys.readouterr().out == ""


GRID = GridEstimate(24, 4, 5000, 2000, 7200.0, 3 * 10**9, 10**10, 4)


@pytest.mark.usefixtures("head")
def test_on_a_cluster_the_line_of_a_benchmark_has_images_time_disk_and_price(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_grid_estimate(GRID)
    line = " ".join(capsys.readouterr().out.split())
    for part in (
        "24 grid cells (4 of them finished)",
        "2,000 images to embed (3,000 of 5,000 in the cache)",
        "2.0 h",
        "3.0 GB of the 10.0 GB",
        "8.00 to 21.20 USD",
        "279.00 USD",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("changes", "shown", "absent"),
    [
        (
            {"seconds": None, "bytes": None, "unknown": ("clip",)},
            "no benchmark with this cache ran clip",
            "about",
        ),
        (
            {"missing": 0, "seconds": 9.0, "bytes": 0},
            "no image to embed (all 5,000 in the cache), about 9 s",
            "GB",
        ),
        ({"missing": 0, "seconds": 0.0, "bytes": 0}, "seconds per grid cell", "about"),
        (
            {"finished": 24, "images": 0, "missing": 0, "seconds": 0.0},
            "all of them finished: seconds",
            "image",
        ),
        ({"bytes": 2 * 10**10}, "NOT enough", "USD"),
        ({"unread": 2}, "not counting 2 of the grid cells, whose images cannot be read", "finished:"),
    ],
)
def test_a_benchmark_says_what_it_knows_of_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    shown: str,
    absent: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    show_grid_estimate(replace(GRID, **changes))
    line = " ".join(capsys.readouterr().out.split())
    assert shown in line
    assert absent not in line


@pytest.mark.parametrize(("seconds", "shown"), [(45, "45 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
