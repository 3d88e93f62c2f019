"""A grid of 2,000 cells: the memory of its driver, and the time of each part of the work.

python benchmarks/speed/many_cells.py [--quick] [--models 20] [--datasets 100]

The driver is this process, with a real Ray, real shards and real scoring. The models are rows of `tiny` with
one cache, so each image is embedded only once or twice and the tower costs next to nothing: the grid itself
is measured. Memory is what the process holds beyond its size before the grid is planned: when the last grid
cell has arrived, and at most, while the leaderboard is written. Limit: 2,000 grid cells in 1 GiB.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _pairs import _reset_peak, _status_bytes, arguments, write
from grid_cores import write_images

if TYPE_CHECKING:
    from his2lip.evaluation import BenchmarkConfig

LIMIT_BYTES = 1 << 30  # of 2,000 grid cells


def planned(folder: Path, models: int, datasets: int, images: int) -> BenchmarkConfig:
    """A benchmark of models x datasets, whose shards are written."""
    from his2lip.config import validate
    from his2lip.evaluation import BenchmarkConfig

    names = [f"d{number:03}" for number in range(datasets)]
    for seed, name in enumerate(names):
        write_images(folder / "shards" / name, images, side=64, seed=seed)
    tree = {
        "models": [{"name": f"m{number:03}", "path": "tiny"} for number in range(models)],
        "datasets": names,
        "shards": str(folder / "shards"),
        "baselines": [],
        "cache": str(folder / "cache"),
        "storage": str(folder),
    }
    return validate(BenchmarkConfig, tree)


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Memory in bytes and seconds of one grid of one protocol per dataset."""
    from his2lip.evaluation import run_grid

    before = _reset_peak()
    begun = time.perf_counter()
    arrived: list[tuple[float, int]] = []

    def on_cell(cell: object, done: int, total: int) -> None:
        arrived.append((time.perf_counter() - begun, _status_bytes("VmRSS") - before))

    result = run_grid(config, on_cell=on_cell)
    seconds = time.perf_counter() - begun
    assert not result.failed, result.failed[:1]
    assert len(result.cells) == len(config.models) * len(config.datasets)
    return {
        "cells": len(result.cells),
        "seconds": seconds,
        "first_cell_s": arrived[0][0],
        "last_cell_s": arrived[-1][0],
        "bytes_at_last_cell": arrived[-1][1],
        "peak_bytes": max(0, _status_bytes("VmHWM") - before),
        "images_embedded": result.counts.images,
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--images", type=int, default=24, help="of each dataset")


def main() -> None:
    """Runs a tenth of the grid and the whole, and writes what each needs."""
    args = arguments("many_cells", "the driver of a grid of many cells", _options)
    if args.quick:
        args.models, args.datasets, args.images = 2, 3, 8
    from his2lip.runtime import start_ray

    start_ray()
    found = {}
    for name, datasets in (("tenth", max(1, args.datasets // 10)), ("whole", args.datasets)):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(planned(Path(folder), args.models, datasets, args.images))
            found[name]["images"] = args.images * datasets
    limits = {"driver within 1 GiB": found["whole"]["peak_bytes"] <= LIMIT_BYTES}
    write(args, found, limits=limits)


if __name__ == "__main__":
    main()
