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
from typing import Any

from _pairs import _reset_peak, _status_bytes, arguments, write
from grid_cores import write_images

LIMIT_BYTES = 1 << 30  # of 2,000 grid cells


def run(models: int, datasets: int, images: int) -> dict[str, Any]:
    """Memory in bytes and seconds of one grid of models x datasets."""
    from his2lip.config import validate
    from his2lip.evaluation import BenchmarkConfig, run_grid

    with tempfile.TemporaryDirectory() as folder:
        names = [f"d{number:03}" for number in range(datasets)]
        for seed, name in enumerate(names):
            write_images(Path(folder, "shards", name), images, side=64, seed=seed)
        tree = {
            "models": [{"name": f"m{number:03}", "path": "tiny"} for number in range(models)],
            "datasets": names,
            "shards": f"{folder}/shards",
            "baselines": [],
            "cache": f"{folder}/cache",
            "storage": folder,
        }
        config = validate(BenchmarkConfig, tree)
        before = _reset_peak()
        begun = time.perf_counter()
        arrived: list[tuple[float, int]] = []

        def on_cell(cell: object, done: int, total: int) -> None:
            arrived.append((time.perf_counter() - begun, _status_bytes("VmRSS") - before))

        result = run_grid(config, on_cell=on_cell)
        seconds = time.perf_counter() - begun
        assert not result.failed, result.failed[:1]
        assert len(result.cells) == models * datasets
        return {
            "cells": len(result.cells),
            "seconds": seconds,
            "first_cell_s": arrived[0][0],
            "last_cell_s": arrived[-1][0],
            "bytes_at_last_cell": arrived[-1][1],
            "peak_bytes": max(0, _status_bytes("VmHWM") - before),
            "images_embedded": result.counts.images,
            "images": images * datasets,
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
    tenth = run(args.models, max(1, args.datasets // 10), args.images)
    whole = run(args.models, args.datasets, args.images)
    limits = {"driver within 1 GiB": whole["peak_bytes"] <= LIMIT_BYTES}
    write(args, {"tenth": tenth, "whole": whole}, limits=limits)


if __name__ == "__main__":
    main()
