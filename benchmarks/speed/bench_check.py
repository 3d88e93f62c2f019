"""`make bench-check`: counts the work of the hot paths and fails where it is 10 % over the committed counts.

python benchmarks/speed/bench_check.py [--update] [--only NAME …]

Counts do not depend on the load of the machine. valgrind's callgrind counts the instructions of the paths
without torch, as the difference of two runs of different lengths, so that imports cancel out. Paths with
torch are counted by torch: FLOPs as a ratio within one run, and calls of kernels. Other versions of the
libraries have other counts: they are compared all the same, and the versions are named. Where valgrind is not
installed, its paths are skipped, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from hot_paths import COUNTED, OPERATIONS

FILE = Path(__file__).resolve().parents[1] / "results" / "bench_check.json"
MOST = 1.10  # of the committed count
VERSIONS = ("numpy", "pyarrow", "simplejpeg", "pillow", "torch")


def instructions(name: str) -> float:
    """Instructions of one repetition of a path."""
    _, short, long = COUNTED[name]
    counted = [_callgrind(name, repeats) for repeats in (short, long)]
    return (counted[1] - counted[0]) / (long - short)


def _callgrind(name: str, repeats: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    script = Path(__file__).with_name("hot_paths.py")
    fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), name, str(repeats)],
        env=os.environ | fixed,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{name}: valgrind ended with {done.returncode}\n{done.stderr[-2000:]}")
    return int(found[1])


def installed() -> dict[str, str]:
    """What the counts depend on beside this code."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in VERSIONS}}


def main() -> None:
    """Counts, compares with the committed counts, and exits with 1 where one is over."""
    parser = argparse.ArgumentParser(description="counts the work of the hot paths")
    parser.add_argument(
        "--update", action="store_true", help="write the counts in place of the committed ones"
    )
    parser.add_argument("--only", nargs="+", choices=[*COUNTED, *OPERATIONS], help="these paths only")
    parser.add_argument("--counts", type=Path, default=FILE, help="the file of the committed counts")
    args = parser.parse_args()
    wanted = args.only or [*COUNTED, *OPERATIONS]
    if shutil.which("valgrind") is None:
        for name in [name for name in wanted if name in COUNTED]:
            print(f"skipped: {name} (valgrind is not installed)")
        wanted = [name for name in wanted if name in OPERATIONS]
    before = (
        json.loads(args.counts.read_text(encoding="utf-8"))
        if args.counts.is_file()
        else {"versions": {}, "counts": {}}
    )
    now = installed()
    if changed := [
        f"{k} {before['versions'].get(k)} -> {v}" for k, v in now.items() if before["versions"].get(k) != v
    ]:
        print(f"other versions than those of the committed counts: {', '.join(changed)}")
    found: dict[str, float] = {}
    over = []
    for name in wanted:
        found[name] = OPERATIONS[name]() if name in OPERATIONS else instructions(name)
        known = before["counts"].get(name)
        change = "new" if known is None else f"{found[name] / known - 1:+.1%}"
        print(f"{name}: {found[name]:,.4g} ({change})", flush=True)
        if known is not None and found[name] > MOST * known:
            over.append(name)
    if args.update:
        record = {"versions": now, "counts": before["counts"] | found}
        args.counts.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return
    if over:
        raise SystemExit(f"over the committed counts by more than {MOST - 1:.0%}: {', '.join(over)}")


if __name__ == "__main__":
    main()
