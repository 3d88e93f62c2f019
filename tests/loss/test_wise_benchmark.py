"""The speed script of the loss runs with --quick and records both programs and the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "speed" / "wise_loss.py"


def test_quick_benchmark_records_both_programs_the_machine_and_their_difference(tmp_path: Path):
    out = tmp_path / "wise.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--n", "256", "--d", "32", "--threads", "1"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert {len(side["seconds"]) for side in record["programs"].values()} == {5}
    assert record["time_ratio"] > 0
    assert record["machine"]["cpu"]
    assert max(record["relative_difference"].values()) < 1e-4
