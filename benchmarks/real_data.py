"""Real labelled IHC from published files to the leaderboard, with models of generated patches only.

Usage: python benchmarks/real_data.py --bcdata DIR --her2 DIR [--seeds 5] [--work DIR]
    [--results FILE] [a.b=value …]

--bcdata  BCData as its authors publish it: images/test, annotations/test/{positive,negative}
--her2    tissue cores in one folder per HER2 score: 0, 1+, 2+, 3+
--results  gets macro F1 of each row with its interval, and each mean over seeds with its difference from the
          demo's model, as JSON
a.b=value overrides of benchmarks/real_data.yaml

The rows are the demo's model, `--seeds` trainings of train/real_transfer.yaml, an untrained `tiny`, baselines
and probes. The real images choose nothing: they are only scored. A second call runs only what is unfinished.
docs/real_data.md has the figures, and what they can tell.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from his2lip.cli.benchmark import run_benchmark
from his2lip.cli.data import prepare_dataset, write_twins
from his2lip.cli.train import run_train
from his2lip.config import load, parse_overrides
from his2lip.data.shards import INFO
from his2lip.evaluation import BenchmarkConfig, CellResult, read_results
from his2lip.report import with_pooled_draws
from his2lip.resources import find
from his2lip.training import TrainConfig

HER2 = "benchmarks/datasets/own/her2-oesophagus.yaml"
DEMO, TRANSFER = "train/demo_train.yaml", "train/real_transfer.yaml"


def main(args: argparse.Namespace) -> None:
    """Prepares the data, trains the models and scores them."""
    work: Path = args.work
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{work.absolute()}/mlflow.db")
    work.mkdir(parents=True, exist_ok=True)
    for name, card, root in (("bcdata", "bcdata", args.bcdata), ("her2-oesophagus", HER2, args.her2)):
        if not (work / "shards" / name / INFO).exists():
            prepare_dataset(card, root, str(work / "shards" / name))
    write_twins(str(work / "generated"), datasets=["mihic", "nuclei"], scale=args.scale)
    steps = {} if args.steps is None else {"optim.steps": args.steps}
    models: list[object] = [
        {"name": "untrained", "path": "tiny"},
        {"name": "demo", "path": train(DEMO, work, "mihic", {"name": "demo", **steps})},
    ]
    transfer = [
        train(TRANSFER, work, "nuclei", {"name": f"real-transfer-{seed}", "seed": seed, **steps})
        for seed in range(args.seeds)
    ]
    if len(transfer) > 1:
        models.append({"seeds": transfer, "name": "real-transfer"})
    else:
        models += [{"name": "real-transfer", "path": path} for path in transfer]
    places = {"storage": str(work), "shards": str(work / "shards"), "cache": str(work / "cache")}
    overrides = {**places, "models": models, "reference": "demo", **parse_overrides(args.overrides)}
    config = load(BenchmarkConfig, find("benchmarks/real_data.yaml"), overrides)
    if run_benchmark(config).failed:
        raise SystemExit(1)
    if args.results is not None:
        write_results(args.results, with_pooled_draws(read_results(Path(config.folder, "leaderboard.csv"))))


def train(recipe: str, work: Path, shards: str, overrides: dict[str, object]) -> str:
    """The best checkpoint of a training run, which is resumed or reused where there is one."""
    places = {"storage": str(work), "data.shards": str(work / "generated" / shards)}
    return str(run_train(load(TrainConfig, find(recipe), {**places, **overrides})).best)


def write_results(file: Path, cells: Sequence[CellResult]) -> None:
    """Writes macro F1 (from 0 to 1) of each row, and of each model that was trained with several seeds."""
    from speed._pairs import machine

    key = ("dataset", "protocol", "n", "clusters")
    figures = ("macro_f1", "macro_f1_lo", "macro_f1_hi")
    seeds = {
        (cell.seeds_of, cell.dataset, cell.protocol): {
            "model": cell.seeds_of,
            **{name: getattr(cell, name) for name in key},
            **over.model_dump(),
        }
        for cell in cells
        if (over := cell.over_seeds.get("macro_f1")) is not None and not cell.is_few_shot
    }
    rows = [{name: getattr(cell, name) for name in ("model", *key, *figures)} for cell in cells]
    tree = {"machine": machine(), "over_seeds": list(seeds.values()), "rows": rows}
    file.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bcdata", type=Path, required=True)
    parser.add_argument("--her2", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/real_data"))
    parser.add_argument("--scale", type=float, default=1.0, help="size of the generated training data")
    parser.add_argument("--steps", type=int, default=None, help="steps of each training; default: its recipe")
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("overrides", nargs="*")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(parser.parse_args())
