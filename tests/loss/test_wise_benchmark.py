"""The speed script of the loss runs with --quick and records both programs and the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_quick_benchmark_records_both_programs_the_machine_and_their_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "speed"))
    from wise_loss import main

    out, options = tmp_path / "wise.json", ["--quick", "--n", "256", "--d", "32", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["wise_loss", *options, "--out", str(out)])
    main()
    record = json.loads(out.read_text())
    assert {len(side["seconds"]) for side in record["programs"].values()} == {5}
    assert record["time_ratio"] > 0
    assert record["machine"]["cpu"]
    assert max(record["relative_difference"].values()) < 1e-4


def test_bench_check_passes_at_the_committed_counts_and_fails_at_ten_percent_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "speed"))
    from bench_check import main

    path = "kernels of the WISE loss"  # needs no valgrind
    committed = json.loads((BENCHMARKS / "results" / "bench_check.json").read_text())
    counts = tmp_path / "counts.json"
    monkeypatch.setattr(sys, "argv", ["bench_check", "--only", path, "--counts", str(counts)])
    counts.write_text(json.dumps(committed))
    main()
    counts.write_text(json.dumps({**committed, "counts": {path: committed["counts"][path] * 0.89}}))
    with pytest.raises(SystemExit) as failed:
        main()
    assert path in str(failed.value)
