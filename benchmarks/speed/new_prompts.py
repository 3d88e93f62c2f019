"""New prompts on a grid whose images are cached: 3 checkpoints on 10 datasets, against an empty cache.

python benchmarks/speed/new_prompts.py [--quick] [--images 100]

All forms run the whole grid on one Ray that was started before, and write the leaderboard. `cold` has an
empty cache. `new sentences` has the features of the images, and prompts that no cache has: each model is
loaded for its text tower. `known sentences` asks with other choices of sentences that are cached: no model is
loaded. Limit: at least 50 times as fast as cold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from _pairs import Program, arguments, in_turn, write
from grid_cores import write_images

LEAST = 50
MODELS, DATASETS = 3, 10
CLASSES = ("Stroma", "Tumor")
SENTENCES = 8  # of each class


def prompts(file: Path, name: str, *, most: int = SENTENCES) -> str:
    """A prompt set of sentences that `name` makes different from those of other sets."""
    classes = {c: [f"{name}: {c.lower()} in view {i}" for i in range(most)] for c in CLASSES}
    file.write_text(json.dumps({"classes": classes}), encoding="utf-8")
    return str(file)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=100, help="of each dataset")
    parser.add_argument("--model", default="ViT-B-32")


def main() -> None:
    """Measures the three forms in turn and writes the ratios."""
    args = arguments("new_prompts", "new prompts on a cached grid", _options)
    model, images, repeats = args.model, args.images, max(args.repeats, 5)
    if args.quick:
        model, images, repeats = "tiny", 12, 1
    from his2lip.config import validate
    from his2lip.evaluation import BenchmarkConfig, run_grid
    from his2lip.models import load_model, save_checkpoint
    from his2lip.runtime import start_ray, usable_cpus

    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        names = [f"d{i}" for i in range(DATASETS)]
        for i, name in enumerate(names):
            write_images(work / "shards" / name, images, seed=i)
        for i in range(MODELS):
            save_checkpoint(work / f"m{i}", load_model(model, seed=i), meta={})
        fresh = (work / f"turn-{i}" for i in itertools.count())

        def grid(cache: Path, asked: str, **expected: int) -> None:
            place = next(fresh)
            tree: dict[str, Any] = {
                "models": [{"name": f"m{i}", "path": str(work / f"m{i}")} for i in range(MODELS)],
                "datasets": names,
                "shards": str(work / "shards"),
                "prompts": dict.fromkeys(names, asked),
                "baselines": [],
                "cache": str(cache),
                "storage": str(place),
            }
            result = run_grid(validate(BenchmarkConfig, tree))
            assert not result.failed, result.failed[:1]
            found = {"images": result.counts.images, "sentences": result.counts.sentences}
            assert found == expected, (found, expected)
            shutil.rmtree(place)

        every, sentences = MODELS * DATASETS * images, MODELS * len(CLASSES) * SENTENCES
        first = prompts(work / "first.yaml", "first")
        grid(work / "cache", first, images=every, sentences=sentences)
        turns = itertools.count()

        def cold() -> None:
            cache = work / "cold"
            grid(cache, first, images=every, sentences=sentences)
            shutil.rmtree(cache)

        def new() -> None:
            asked = prompts(work / "new.yaml", f"turn {next(turns)}")
            grid(work / "cache", asked, images=0, sentences=sentences)

        def known() -> None:
            asked = prompts(work / "known.yaml", "first", most=1 + next(turns) % (SENTENCES - 1))
            grid(work / "cache", asked, images=0, sentences=0)

        forms = [Program("cold", cold), Program("new sentences", new), Program("known sentences", known)]
        sides = in_turn(forms, repeats=repeats, warmup=0)
    ratios = {
        name: {
            "times": sides["cold"]["median_s"] / side["median_s"],
            "spread": [
                min(c / s for c, s in zip(sides["cold"]["seconds"], side["seconds"], strict=True)),
                max(c / s for c, s in zip(sides["cold"]["seconds"], side["seconds"], strict=True)),
            ],
        }
        for name, side in sides.items()
        if name != "cold"
    }
    setting = {"model": model, "models": MODELS, "datasets": DATASETS, "images": images}
    limits = {f"{name}: {LEAST}x": found["times"] >= LEAST for name, found in ratios.items()}
    write(args, {**setting, "cores": usable_cpus(), "forms": sides, "ratios": ratios}, limits=limits)


if __name__ == "__main__":
    main()
