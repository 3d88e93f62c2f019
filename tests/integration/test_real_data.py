"""Real labelled IHC from the published files to the leaderboard, and the same on generated files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from his2lip import resources
from his2lip.data.images.codec import encode_jpeg
from his2lip.evaluation.results import CellResult, read_results
from his2lip.synthetic.rehearsal import write_rehearsal

KINDS = ("knn", "logistic")

Rows = dict[tuple[str, str, str], CellResult]


def leaderboard(work: Path, bcdata: Path, her2: Path, *options: str) -> Rows:
    """Runs benchmarks/real_data.py as a user does: (model, dataset, protocol) -> row."""
    places = ["--bcdata", bcdata, "--her2", her2, "--work", work]
    store = {"PYTHONPATH": str(resources.root()), "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db"}
    ran = subprocess.run(
        [sys.executable, "benchmarks/real_data.py", *places, *options],
        cwd=resources.root(),
        env=os.environ | store,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "macro F1, percent" in ran.stdout
    rows = read_results(work / "benchmark/real-data/leaderboard.csv")
    return {(row.model, row.dataset, row.protocol): row for row in rows}


def check_rows(rows: Rows) -> None:
    """Every model, baseline and probe is there; a probe is none of the zero-shot rows."""
    for protocol in ("default", "ki67"):
        own = {m: row for (m, d, p), row in rows.items() if (d, p) == ("bcdata", protocol)}
        models = ["untrained", "demo", "real-transfer"]
        assert {*models, "baseline:chance", "baseline:majority", "baseline:mean-colour"} <= set(own)
        assert {f"probe:{kind} of {model}" for kind in KINDS for model in models} <= set(own)
        for row in own.values():
            assert row.cluster_kind == "file", "BCData names no cases and no slides"
            assert row.is_probe == ("not zero-shot" in (row.caveat or "")) or row.is_baseline
        assert len({(row.n, row.clusters) for row in own.values()}) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_real_images_go_from_prepare_to_the_leaderboard(shared: Path, tmp_path: Path) -> None:
    real = shared / "real_ihc"
    rows = leaderboard(
        tmp_path, real / "BCData", real / "her2_oesophagus", "--seeds", "1", "probes.shots=[4,full]"
    )
    check_rows(rows)
    tumour = rows["demo", "bcdata", "default"]
    assert (tumour.n, tumour.clusters, tumour.generated, tumour.role) == (2361, 26, False, "report")
    assert tumour.interval("macro_f1") is not None
    cores = rows["demo", "her2-oesophagus", "default"]
    assert (cores.n, cores.clusters, cores.cluster_kind) == (14, 14, "case")
    assert "one case" in str(rows["demo", "her2-oesophagus", "score4"].no_interval), "there is one core of 3+"
    assert ("probe:knn of demo", "her2-oesophagus", "score4") not in rows, "nothing to fit 3+ on"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generated_files_in_the_same_layouts_go_from_prepare_to_the_leaderboard(tmp_path: Path) -> None:
    write_rehearsal("bcdata", tmp_path / "BCData", each=6)
    rng = np.random.default_rng(0)
    for i, score in enumerate(("0", "1+", "2+", "3+")):
        (tmp_path / "cores" / score).mkdir(parents=True)
        for k in range(3):
            core = np.clip(rng.normal((200 - 30 * i, 190 - 40 * i, 200 - 50 * i), 12, (300, 300, 3)), 0, 255)
            (tmp_path / "cores" / score / f"{score}{k}.jpg").write_bytes(encode_jpeg(core.astype(np.uint8)))
    options = ("--seeds", "1", "--steps", "4", "--scale", "0.05", "probes.shots=[full]")
    rows = leaderboard(tmp_path / "work", tmp_path / "BCData", tmp_path / "cores", *options)
    check_rows(rows)
    assert rows["demo", "bcdata", "default"].generated
    assert rows["demo", "her2-oesophagus", "score4"].interval("accuracy") is not None
