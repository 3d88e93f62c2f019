"""What the default `auto` gives against values set by hand: training, a benchmark, classify and prepare.

python benchmarks/speed/all_cores.py [--quick] [--parts train benchmark classify prepare]

Every setting runs in turn, in this process (the benchmark: in the tasks of one Ray), with all cores that the
process may use. `classify` and `prepare` have no settings; they run on one core of this process and on all of
them, `classify` also in the form that decodes one image after another. Limit: `auto` reaches 85 % of the rate
of the best setting.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _pairs import Program, arguments, in_turn, write
from grid_cores import write_images

LEAST_SHARE = 0.85
PARTS = ("train", "benchmark", "classify", "prepare")


@contextmanager
def cores(count: int) -> Iterator[None]:
    """This process, and threads that it starts, on the first `count` of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def train(work: Path, model: str, steps: int, batch: int) -> dict[str, Callable[[], None]]:
    """A short run in this process by numbers of torch threads and of threads that decode."""
    from his2lip.config import validate
    from his2lip.runtime import usable_cpus
    from his2lip.synthetic import write_twin
    from his2lip.training import TrainConfig, run_in_process

    shards = work / "twin"
    write_twin("mihic", shards, scale=0.1)
    most, seeds = usable_cpus(), itertools.count()

    def run(threads: int | str, decode: int | str) -> None:
        tree = {
            "seed": next(seeds),  # a run with the seed of the one before would find its decoded batches
            "model": {"backbone": model},
            "data": {
                "shards": str(shards),
                "batch_size": batch,
                "select": None,
                "loader": "local",
                "decode_threads": decode,
            },
            "workers": {"threads": threads},
            "optim": {"steps": steps},
        }
        run_in_process(validate(TrainConfig, tree), report=lambda metrics: None)

    by_hand = dict.fromkeys(itertools.product((1, most), (1, most)))
    forms = {f"threads={t}, decode_threads={d}": (lambda t=t, d=d: run(t, d)) for t, d in by_hand}
    return {"auto": lambda: run("auto", "auto"), **forms}


def benchmark(work: Path, model: str, images: int) -> dict[str, Callable[[], None]]:
    """The grid of one model on one dataset, with an empty cache."""
    from his2lip.config import validate
    from his2lip.evaluation import BenchmarkConfig, run_grid
    from his2lip.runtime import start_ray, usable_cpus

    start_ray()
    write_images(work / "grid", images)
    fresh = itertools.count()

    def run(cpus: float | str, helpers: int | str) -> None:
        place = work / f"grid-{next(fresh)}"
        tree = {
            "models": [model],
            "datasets": {"random": str(work / "grid")},
            "baselines": [],
            "cpus": cpus,
            "helpers": helpers,
            "cache": str(place / "cache"),
            "storage": str(place),
        }
        result = run_grid(validate(BenchmarkConfig, tree))
        assert not result.failed, result.failed
        assert result.counts.images == images
        shutil.rmtree(place)

    most = usable_cpus()
    return {
        "auto": lambda: run("auto", "auto"),
        "cpus=1, helpers=0": lambda: run(1, 0),
        f"cpus=1, helpers={most - 1}": lambda: run(1, most - 1),
        f"cpus={most}, helpers=0": lambda: run(most, 0),
    }


def classify(work: Path, model: str, images: int) -> dict[str, Callable[[], None]]:
    """The answers of `his2lip classify` on a folder, from files to answers."""
    import torch

    from his2lip.models import load_model
    from his2lip.runtime import usable_cpus
    from his2lip.serving import Classifier, Scale, load_pixels, prefetched

    files = write_files(work / "folder", images)
    classifier, most = Classifier(load_model(model)), usable_cpus()

    def see(file: Path) -> Any:
        return classifier.see(load_pixels(file), Scale())

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        with cores(threads):
            for batch in prefetched(see, files, batch=classifier.batch_size):
                classifier.classify_seen(batch)

    def one_by_one() -> None:
        torch.set_num_threads(most)
        for start in range(0, len(files), classifier.batch_size):
            part = files[start : start + classifier.batch_size]
            classifier.classify_batch((load_pixels(file), Scale()) for file in part)

    return {"auto": lambda: run(most), "one core": lambda: run(1), "decoded one by one": one_by_one}


def prepare(work: Path, images: int) -> dict[str, Callable[[], None]]:
    """`his2lip data prepare` of a folder whose images are too few for several parts."""
    from his2lip.data.cards import Card
    from his2lip.data.prepare import prepare as make
    from his2lip.runtime import usable_cpus

    root, fresh = work / "root", itertools.count()
    write_files(root / "Tumor", images, side=1024)
    card = Card.model_validate(
        {
            "name": "folder",
            "reader": "folder",
            "splits": {"test": {"role": "report"}},
            "classes": {"Tumor": []},
            "protocols": {},
        }
    )

    def run(count: int) -> None:
        with cores(count):
            report = make(card, root, work / f"prepared-{next(fresh)}", ray=False)
        assert report.read == images

    return {"auto": lambda: run(usable_cpus()), "one core": lambda: run(1)}


def write_files(folder: Path, images: int, *, side: int = 512) -> list[Path]:
    """Different JPEG files of `side` px."""
    from his2lip.data.images import encode_jpeg

    folder.mkdir(parents=True)
    draws, files = np.random.default_rng(0), []
    for number in range(images):
        coarse = draws.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        files.append(folder / f"{number:05}.jpg")
        files[-1].write_bytes(encode_jpeg(coarse.repeat(8, axis=0).repeat(8, axis=1), quality=90))
    return files


def share_of_best(sides: dict[str, dict[str, Any]]) -> float:
    """The rate of `auto` as a share of the best other one."""
    return min(side["median_s"] for name, side in sides.items() if name != "auto") / sides["auto"]["median_s"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="ViT-S-32-alt", help="of training, benchmark and classify")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="of training, with batches of 32")


def main() -> None:
    """Measures each part and writes the shares."""
    args = arguments("all_cores", "the default `auto` against values set by hand", _options)
    model, images, steps, batch, repeats = args.model, args.images, args.steps, 32, max(args.repeats, 5)
    if args.quick:
        model, images, steps, batch, repeats = "tiny", 24, 2, 8, 1
    from his2lip.runtime import share_cores, usable_cpus

    share_cores()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        makers: dict[str, Callable[[], dict[str, Callable[[], None]]]] = {
            "train": lambda: train(work, model, steps, batch),
            "benchmark": lambda: benchmark(work, model, images),
            "classify": lambda: classify(work, model, images),
            "prepare": lambda: prepare(work, images),
        }
        for part in args.parts:
            programs = [Program(name, form) for name, form in makers[part]().items()]
            sides = in_turn(programs, repeats=repeats)
            found[part] = {"settings": sides, "share_of_best": share_of_best(sides)}
    setting = {"model": model, "images": images, "steps": steps, "batch": batch, "cores": usable_cpus()}
    limits = {f"{part}: 85 % of the best": f["share_of_best"] >= LEAST_SHARE for part, f in found.items()}
    write(args, {**setting, "repeats": repeats, "parts": found}, limits=limits)


if __name__ == "__main__":
    main()
