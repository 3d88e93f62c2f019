"""What one process holds as data and sweeps grow.

python benchmarks/speed/scale.py [--quick] [--rows 1000000 10000000] [--images 10000 100000]
    [--trials 100 1000]

No image is decoded and no tower runs. `order` is the plan of a training run over that many patches, in row
groups of 1,000 (`data.stream.Plan`): building it, the order of an epoch, and what to read in it. `rows` is a
split's table, as `embed` and the plan of a benchmark read it. `cache` is the look-up of all features of one
model, width 512. `sweep` is a real sweep of trials that do nothing, two at a time, on a real Ray, with its
study in SQLite. Each size runs in a process of its own; memory is that process's peak beyond its imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _pairs import _reset_peak, _status_bytes, arguments, write

GROUP = 1_000  # rows of a row group
PART = 2_048  # images in a part of the cache
WIDTH = 512


def order(rows: int) -> dict[str, float]:
    """Seconds of the three parts of a plan."""
    from his2lip.data.stream.order import Plan

    begun = time.perf_counter()
    plan = Plan([GROUP] * (rows // GROUP), seed=0, batch_size=1024, lanes=64, window=4)
    built = time.perf_counter()
    plan.reads(0, plan.steps_per_epoch, range(8))
    read = time.perf_counter()
    plan.epoch(0)
    return {"build_s": built - begun, "reads_s": read - built, "epoch_s": time.perf_counter() - read}


def rows(count: int) -> dict[str, float]:
    """Bytes of the metadata of a split, as `ShardSet.table` gives it, by the columns of real shards."""
    import pyarrow as pa

    from his2lip.data.shards import SCHEMA

    columns: dict[str, Any] = {}
    for field in SCHEMA:
        if field.name == "image":
            continue
        if field.name in ("patch_id", "sha256"):
            columns[field.name] = pa.array([f"{field.name}/train/{i:051d}" for i in range(count)])
        elif pa.types.is_string(field.type):
            columns[field.name] = pa.array(["case-0001"]).take(pa.array(np.zeros(count, dtype=np.int32)))
        else:
            columns[field.name] = pa.array(np.zeros(count), type=pa.float64()).cast(field.type, safe=False)
    return {"table_bytes": float(pa.table(columns).nbytes)}


def cache(images: int) -> dict[str, float]:
    """Seconds to write the features of `images` in parts, and to look all of them up."""
    from his2lip.evaluation.feature_store import FeatureStore

    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(folder, "images/k", width=WIDTH)
        keys = [f"{i:064x}" for i in range(images)]
        begun = time.perf_counter()
        for start in range(0, images, PART):
            part = keys[start : start + PART]
            features = draws.standard_normal((len(part), 1, WIDTH), dtype=np.float32)
            store.append(dict(zip(part, features, strict=True)))
        written = time.perf_counter()
        _reset_peak()
        found = store.read(keys)
        assert len(found) == images
        return {"write_s": written - begun, "read_s": time.perf_counter() - written}


def sweep(trials: int) -> dict[str, float]:
    """Seconds per trial of a sweep, and the size of its study."""
    from pathlib import Path

    from sweep_overhead import sweep as run

    from his2lip.runtime import start_ray

    start_ray(num_cpus=2)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        run(Path(folder, "s"), trials)
        seconds = time.perf_counter() - begun
        study = next(Path(folder).rglob("study.db")).stat().st_size
    return {"seconds": seconds, "s_per_trial": seconds / trials, "study_bytes": float(study)}


PARTS: dict[str, Callable[[int], dict[str, float]]] = {
    "order": order,
    "rows": rows,
    "cache": cache,
    "sweep": sweep,
}
FIRST = {"order": 100_000, "rows": 1_000, "cache": 1_000, "sweep": 4}  # imports and first allocations


def alone(part: str, size: int) -> dict[str, float]:
    """A part in a process of its own, with its peak memory."""
    command = [sys.executable, __file__, "--only", part, str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _only(part: str, size: int) -> None:
    PARTS[part](FIRST[part])
    before = _reset_peak()
    found = PARTS[part](size)
    print(json.dumps({"size": size, **found, "peak_bytes": _status_bytes("VmHWM") - before}))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1_000])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))


def main() -> None:
    """Runs each part at each size."""
    if sys.argv[1:2] == ["--only"]:
        _only(sys.argv[2], int(sys.argv[3]))
        return
    args = arguments("scale", "what one process holds as data grows", _options)
    if args.quick:
        args.rows, args.images, args.trials = [100_000], [4_000], [6]
    sizes = {
        "order": args.rows,
        "rows": [max(1, size // 10) for size in args.rows],
        "cache": args.images,
        "sweep": args.trials,
    }
    write(args, {part: [alone(part, size) for size in sizes[part]] for part in args.parts})


if __name__ == "__main__":
    main()
