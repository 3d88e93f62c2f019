"""A benchmark of one model: on all cores of this machine, against one core.

python benchmarks/speed/grid_cores.py [--quick] [--parts cores nodes] [--images 1024] [--node-images 4096]

All programs run the whole grid of one untrained ViT-B/32 on one dataset of generated images with an empty
cache: with the options by default, whose one task takes all cores; in a task of one CPU with helpers, as with
more models or machines; and in that task alone. Ray is started before; the start of the tasks and helpers,
loading the model in each, and scoring count. Limit: on two cores at most 0.6 of the time of one.

A second part, `nodes`, embeds with a tower that sleeps, on 16 simulated nodes of one CPU each
(`ray.cluster_utils.Cluster`), against the same work on one. The helpers have embedded a part each before.
Limit: 0.9 of linear.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _pairs import Program, arguments, in_turn, write

ONE_CORE, BY_DEFAULT = "one core", "all cores, by default"
LIMIT = 0.6
LINEAR = 0.9
NODES = 16
PARTS = ("cores", "nodes")
SLEEP_S = 0.05  # per image; 16 processes that sleep take little of the cores of this machine


class SleepingTower:
    """An encoder whose forward pass is a pause, so that many nodes can be simulated on one machine."""

    width = 1
    key = "sleeping"

    def crop_key(self, mpp: float | None) -> str:
        return ""

    def crops(self, pixels: np.ndarray, mpp: float | None) -> np.ndarray:
        return np.zeros((1, 1), dtype=np.float32)

    def encode(self, crops: np.ndarray) -> np.ndarray:
        time.sleep(SLEEP_S * len(crops))
        return crops


def write_images(
    folder: Path,
    images: int,
    *,
    side: int = 224,
    seed: int = 0,
    noise: int = 0,
    classes: Sequence[str] = ("Stroma", "Tumor"),
) -> None:
    """A dataset of different random images of `side` px; equal bytes would be embedded once.

    noise    largest value that is added to or taken from each pixel of their blocks of 8 x 8
    classes  tissue types, which the images have in turn
    """
    from his2lip.data.cards import Card
    from his2lip.data.images import encode_jpeg
    from his2lip.data.shards import Patch, ShardWriter

    protocol = {
        "split": "test",
        "label": "tissue",
        "classes": {name: [name] for name in classes},
        "prompts": "tissue",
        "basis": "ours",
    }
    card = Card.model_validate(
        {
            "name": "random",
            "reader": "none",
            "splits": {"test": {"role": "report"}},
            "protocols": {"default": protocol},
        }
    )
    draws = np.random.default_rng(seed)
    with ShardWriter(folder, card=card) as writer:
        for number in range(images):
            coarse = draws.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)
            if noise:
                added = draws.integers(-noise, noise + 1, pixels.shape)
                pixels = (pixels + added).clip(0, 255).astype(np.uint8)
            writer.add(
                Patch(
                    patch_id=f"random/{number}.jpg",
                    image=encode_jpeg(pixels, quality=90),
                    dataset="random",
                    split="test",
                    tissue=classes[number % len(classes)],
                    case_id=f"case-{number % 10}",
                    width=side,
                    height=side,
                    mpp=0.5,
                )
            )


def cores(model: str, shards: Path, work: Path, images: int, repeats: int) -> dict[str, Any]:
    """The whole grid of one model on one core, and on all of them in two ways."""
    from his2lip.config import validate
    from his2lip.evaluation import BenchmarkConfig, run_grid

    fresh = (work / str(i) for i in itertools.count())

    def grid(cpus: int | str, helpers: int | str) -> None:
        place = next(fresh)
        tree = {
            "models": [model],
            "datasets": {"random": str(shards)},
            "baselines": [],
            "cpus": cpus,
            "helpers": helpers,
            "cache": str(place / "cache"),
            "storage": str(place),
        }
        result = run_grid(validate(BenchmarkConfig, tree))
        assert not result.failed, result.failed
        assert result.counts.images == images, "an image is embedded twice"

    programs = [
        Program(ONE_CORE, lambda: grid(1, 0)),
        Program(BY_DEFAULT, lambda: grid("auto", "auto")),
        Program("one core and helpers", lambda: grid(1, "auto")),
    ]
    sides = in_turn(programs, repeats=repeats)
    one = sides[ONE_CORE]

    def against(side: dict[str, Any]) -> dict[str, Any]:
        each = [own / alone for own, alone in zip(side["seconds"], one["seconds"], strict=True)]
        return {"time_ratio": side["median_s"] / one["median_s"], "spread": [min(each), max(each)]}

    return {
        "programs": sides,
        "against_one_core": {name: against(side) for name, side in sides.items() if name != ONE_CORE},
    }


def nodes(shards: Path, count: int) -> dict[str, Any]:
    """Seconds of the same images on `count` nodes and on one, by a tower that sleeps."""
    import ray
    from ray.cluster_utils import Cluster

    from his2lip.data.shards import open_shards
    from his2lip.evaluation.helpers import Helpers

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, logging_level=logging.WARNING)
    ray.cloudpickle.register_pickle_by_value(__import__("__main__"))
    opened, seconds = open_shards(shards), {}
    try:
        for others in (0, count - 1):
            with Helpers(None, {"num_cpus": 1.0}, most=others) as helpers:
                helpers.start()
                rows = range(len(opened.table("test", ["patch_id"])))
                first = rows[
                    : 16 * (others + 1)
                ]  # a part for each: a process imports once, at its first part
                list(helpers.encode(SleepingTower(), opened, "test", first, batch_size=4))
                begun = time.perf_counter()
                done = list(helpers.encode(SleepingTower(), opened, "test", rows, batch_size=4))
                seconds[others + 1] = time.perf_counter() - begun
                assert sorted(row for row, _ in done) == list(rows), "an image is missing or embedded twice"
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {
        "nodes": count,
        "sleep_s_per_image": SLEEP_S,
        "images": len(rows),
        "seconds": seconds,
        "of_linear": seconds[1] / seconds[count] / count,
    }


def main() -> None:
    """Measures the parts and writes the ratios."""
    args = arguments(
        "grid_cores",
        "one model's benchmark on all cores, and on simulated nodes",
        lambda parser: parser.add_argument("--images", type=int, default=1024),
        lambda parser: parser.add_argument("--node-images", type=int, default=4096),
        lambda parser: parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)),
    )
    images, repeats, count = (96, 1, 2) if args.quick else (args.images, max(args.repeats, 5), NODES)
    of_nodes = 96 if args.quick else args.node_images
    from his2lip.runtime import start_ray, usable_cpus

    model = "tiny" if args.quick else "ViT-B-32"
    found: dict[str, Any] = {}
    limits: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "cores" in args.parts:
            write_images(Path(folder, "shards"), images)
            start_ray()
            import ray

            found["cores"] = cores(model, Path(folder, "shards"), Path(folder), images, repeats)
            ray.shutdown()
            by_default = found["cores"]["against_one_core"][BY_DEFAULT]
            limits["time_ratio"] = by_default["time_ratio"] <= LIMIT
        if "nodes" in args.parts:
            write_images(Path(folder, "nodes"), of_nodes, side=32)
            found["nodes"] = nodes(Path(folder, "nodes"), count)
            limits["of_linear"] = found["nodes"]["of_linear"] >= LINEAR
    setting = {"model": model, "images": images, "cores": usable_cpus(), "limit": LIMIT, "repeats": repeats}
    write(args, {**setting, "parts": found}, limits=limits)


if __name__ == "__main__":
    main()
