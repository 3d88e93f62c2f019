"""Two models of the MIHIC twin whose order follows the wording of the prompts, each trained as by a user."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from his2lip.config import dump_yaml
from his2lip.data.captions import CaptionBank
from his2lip.taxonomy import TISSUES


def _his2lip(folder: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    command = [sys.executable, "-m", "his2lip", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_model_of_released_captions_and_one_of_templates_change_places_with_the_wording_and_are_marked(
    tmp_path: Path, shared: Path
) -> None:
    _his2lip(tmp_path, "data", "synthesize", "--datasets", "mihic", "--out", "shards")
    corpus = str(shared / "captions/AugmentedCaptions")
    _his2lip(tmp_path, "data", "prepare", "captions", "--root", corpus, "--out", "bank.json")
    train = ["train", "train/demo_train.yaml", "data.shards=shards/mihic", "storage=runs"]
    _his2lip(tmp_path, *train, "name=templates")
    _his2lip(tmp_path, *train, "name=released", "data.captions=bank.json", "data.missing=template")

    held_out = CaptionBank.load(tmp_path / "bank.json").held_out
    pool = {
        t: [line for (tissue, _), own in held_out.items() if tissue == t for line in own] for t in TISSUES
    }
    (tmp_path / "released.yaml").write_text(dump_yaml({"classes": pool}), encoding="utf-8")
    benchmark = {
        "name": "wording",
        "models": ["runs/train/templates/best", "runs/train/released/best"],
        "datasets": {"mihic": "shards/mihic"},
        "pools": {"released": {"mihic": "released.yaml"}},
    }
    (tmp_path / "wording.yaml").write_text(dump_yaml(benchmark), encoding="utf-8")
    said = _his2lip(tmp_path, "benchmark", "wording.yaml")

    assert "order depends on prompts: 1 of 1 pairs" in said
    report = tmp_path / "runs/benchmark/wording/report"
    with (report / "prompt_order.csv").open(newline="") as file:
        (pair,) = csv.DictReader(file)
    assert (pair["first"], pair["second"]) == ("templates", "released")
    assert float(pair["share_in_order"]) < 0.5
    with (report / "leaderboard.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["model"].startswith("baseline:")]
    assert [row["order_depends_on_prompts"] for row in rows] == ["True", "True"]
    assert "order depends on prompts" in (report / "index.html").read_text(encoding="utf-8")
