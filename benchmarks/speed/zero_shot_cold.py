"""Zero-shot classification with an empty cache, against only encoding, and against the released arithmetic.

python benchmarks/speed/zero_shot_cold.py [--quick] [--images 256]

`bare` encodes the same crops, decoded before, batch by batch as torch does it on the same threads, and one
sentence of each of 7 classes. `ours` is the grid's own path from shards to scores: reading, sha256, decoding,
the cache, pooling. `released` is the arithmetic of the paper's evaluator: each batch of images, and the
sentence of a class, are encoded again for every class. Limits: 95 % of the bare rate, 6 times the
released one, and equal predictions.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pairs import Program, arguments, in_turn, write
from grid_cores import write_images

LEAST_OF_BARE, LEAST_OF_RELEASED = 0.95, 6.0
BATCH = 64


def programs(work: Path, model_name: str, images: int, threads: int) -> tuple[list[Program], dict[str, Any]]:
    """The three programs, and the predictions of the two that classify, once they have run."""
    from his2lip import taxonomy
    from his2lip.data.images import decode
    from his2lip.data.shards import open_shards
    from his2lip.evaluation import BenchmarkConfig, EmbeddingCache, PromptSet
    from his2lip.evaluation.encoders import ModelEncoder
    from his2lip.evaluation.grid_cell import CellPlan
    from his2lip.evaluation.grid_plans import plan_cells
    from his2lip.evaluation.scorers import ModelScorer
    from his2lip.models import load_model

    write_images(work / "shards", images, classes=taxonomy.TISSUES)
    shards = open_shards(str(work / "shards"))
    model = load_model(model_name)
    config = BenchmarkConfig.model_validate({"models": ["tiny"], "datasets": {"random": shards.uri}})
    ((plan,), _) = plan_cells(config)
    sentences = {name: [f"an image of {name.lower()}"] for name in plan.selection.classes}
    assert isinstance(plan, CellPlan)
    plan = replace(plan, prompts=PromptSet.build("one", sentences))
    fresh = itertools.count()
    weights = model.tensor_digest()
    encoder = ModelEncoder(model, weights=weights)
    crops = np.concatenate(
        [encoder.crops(decode(row), None) for row in shards.table("test", ["image"])["image"].to_pylist()]
    )
    parts = [crops[start : start + BATCH] for start in range(0, len(crops), BATCH)]
    lines = [line for own in sentences.values() for line in own]
    found: dict[str, Any] = {}

    def plain(part: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(part).permute(0, 3, 1, 2).contiguous()
        return model.encode_image(model.preprocess.normalize(images), normalize=False)

    def bare() -> None:
        with torch.inference_mode():
            for part in parts:
                plain(part)
            model.encode_text(lines, normalize=False)

    def ours() -> None:
        cache = work / f"cache-{next(fresh)}"
        scorer = ModelScorer("m", model, EmbeddingCache(str(cache)), batch_size=BATCH, threads=threads)
        found["ours"] = scorer.score(plan).scores.predicted
        shutil.rmtree(cache)

    def released() -> None:
        scores = []
        with torch.inference_mode():
            for part in parts:
                columns = []
                for line in lines:
                    text = model.encode_text([line], normalize=True)
                    columns.append(torch.nn.functional.normalize(plain(part), dim=-1) @ text.T)
                scores.append(torch.cat(columns, dim=1))
        found["released"] = torch.cat(scores).argmax(dim=1).numpy()

    return [Program("bare", bare), Program("ours", ours), Program("released", released)], found


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--model", default="ViT-B-32")


def main() -> None:
    """Measures the three in turn and writes the ratios with their spread."""
    args = arguments("zero_shot_cold", "zero-shot classification with an empty cache", _options)
    model, images, repeats = args.model, args.images, max(args.repeats, 5)
    if args.quick:
        model, images, repeats = "tiny", 70, 1
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        forms, found = programs(Path(folder), model, images, args.threads)
        sides = in_turn(forms, repeats=repeats)
    assert len(found["ours"]) == images
    equal = float((found["ours"] == found["released"]).mean())

    def ratio(name: str) -> dict[str, Any]:
        pairs = zip(sides[name]["seconds"], sides["ours"]["seconds"], strict=True)
        each = [other / ours for other, ours in pairs]
        return {
            "median": sides[name]["median_s"] / sides["ours"]["median_s"],
            "spread": [min(each), max(each)],
        }

    ratios = {name: ratio(name) for name in ("bare", "released")}
    limits = {
        "95 % of the bare rate": ratios["bare"]["median"] >= LEAST_OF_BARE,
        "6 times the released rate": ratios["released"]["median"] >= LEAST_OF_RELEASED,
        "equal predictions": equal == 1.0,
    }
    setting = {"model": model, "images": images, "classes": 7, "batch": BATCH, "repeats": repeats}
    write(args, {**setting, "forms": sides, "ratios": ratios, "equal": equal}, limits=limits)


if __name__ == "__main__":
    main()
