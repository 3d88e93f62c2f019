"""What captions that follow the staining change: one recipe, three kinds of captions and targets, some seeds.

Usage: python benchmarks/captions_effect.py [--seeds 5] [--steps 300] [--real FOLDER] [--work FOLDER]

Each model is `tiny`, trained on the generated MIHIC twin by train/demo_train.yaml, and then scored zero-shot
by protocols of the twins, and of the real BCData images in FOLDER (the layout that the authors publish).
docs/captions.md contains the table. The real images choose nothing: they are only scored.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from his2lip.cli.data import prepare_dataset
from his2lip.config import load
from his2lip.data.shards import INFO
from his2lip.evaluation import BenchmarkConfig, CellResult, run_grid
from his2lip.resources import find
from his2lip.runtime import start_ray
from his2lip.synthetic import write_twin
from his2lip.training import TrainConfig
from his2lip.training.local import run_in_process

RESULT = Path(__file__).parent / "results/captions_effect.json"
# Kind of captions and targets -> overrides of the recipe.
ARMS: dict[str, dict[str, object]] = {
    "typical": {"data.staining": "ignore"},
    "following": {"data.staining": "follow"},
    "following, finding 1": {"data.staining": "follow", "loss.similarity.finding": 1.0},
}
TWINS = ("mihic", "her2-ihc-40x", "ihc4bc", "bcdata")
PROTOCOLS = ("default", "ki67", "score4")
REAL = "bcdata (real)"


def main(args: argparse.Namespace) -> None:
    """Trains and scores all models, writes the result and prints the table."""
    from speed._pairs import machine

    shards = {name: str(args.work / "shards" / name) for name in TWINS}
    for name, place in shards.items():
        if not Path(place, INFO).exists():
            write_twin(name, place)
    real = str(args.work / "shards/real/bcdata")
    if args.real is not None and not Path(real, INFO).exists():
        prepare_dataset("bcdata", args.real, real)
    models = [
        {"name": f"{arm}/{seed}", "path": train(args, arm, seed, shards["mihic"])}
        for seed in range(args.seeds)
        for arm in ARMS
    ]
    start_ray(num_cpus=2)
    cells = grid(args, "twins", models, shards)
    if args.real is not None:
        cells |= {
            (m, REAL, p): cell for (m, _, p), cell in grid(args, "real", models, {"bcdata": real}).items()
        }
    result = {
        "recipe": "train/demo_train.yaml", "steps": args.steps, "seeds": args.seeds, "machine": machine(2),
        "arms": ARMS, "cells": summary(cells, args.seeds),
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result["cells"]))


def train(args: argparse.Namespace, arm: str, seed: int, shards: str) -> str:
    """Trains one model, if it is not there yet; the folder of its checkpoint."""
    folder = args.work / "models" / f"{arm.replace(', ', '-').replace(' ', '')}-{seed}"
    if not (folder / "best/his2lip.json").exists():
        overrides = {
            "seed": seed, "data.shards": shards, "data.select": None, "checkpoint.select_by": "loss",
            "optim.steps": args.steps, **ARMS[arm],
        }  # fmt: skip
        config = load(TrainConfig, find("train/demo_train.yaml"), overrides)
        print(f"training {folder.name}", flush=True)
        run_in_process(config, report=lambda metrics: False, folder=folder)
    return str(folder / "best")


def grid(
    args: argparse.Namespace, name: str, models: list[dict[str, str]], uris: dict[str, str]
) -> dict[tuple[str, str, str], CellResult]:
    """Scores the models and two baselines: (model, dataset, protocol) -> result."""
    tree = {
        "name": name, "models": models, "datasets": uris, "protocols": list(PROTOCOLS),
        "baselines": ["chance", "stained-area"], "storage": str(args.work), "cache": str(args.work / "cache"),
    }  # fmt: skip
    found = run_grid(BenchmarkConfig.model_validate(tree))
    return {(c.model, c.dataset, c.protocol): c for c in found.cells}


def summary(cells: dict[tuple[str, str, str], CellResult], seeds: int) -> list[dict[str, Any]]:
    """Macro F1 of each seed, and the share of units that each class is predicted for, by arm and protocol."""
    rows = []
    for dataset, protocol in dict.fromkeys((d, p) for _, d, p in cells):
        of_arm: dict[str, Any] = {}
        for arm in ARMS:
            own = [cells[f"{arm}/{seed}", dataset, protocol] for seed in range(seeds)]
            of_arm[arm] = {"macro_f1": [c.macro_f1 for c in own], "predicted": [predicted(c) for c in own]}
        first = own[0]
        baselines = {
            m: c.macro_f1 for (m, d, p), c in cells.items() if (d, p) == (dataset, protocol) and c.is_baseline
        }
        rows.append(
            {
                "dataset": dataset, "protocol": protocol, "n": first.n, "generated": first.generated,
                "classes": first.classes, "prompts_sha256": first.prompts_sha256, "arms": of_arm,
                "baselines": baselines,
            }
        )  # fmt: skip
    return rows


def predicted(cell: CellResult) -> dict[str, float]:
    """Class -> share of the units that it is predicted for."""
    columns = [sum(row[k] for row in cell.confusion) / cell.n for k in range(len(cell.classes))]
    return dict(zip(cell.classes, columns, strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/captions.md: mean macro F1 over seeds and their standard deviation, percent."""
    lines = [
        f"| dataset, protocol | n | {' | '.join(ARMS)} | stained area |",
        "| --- " + "| ---: " * (len(ARMS) + 2) + "|",
    ]
    for row in rows:
        figures = []
        for arm in ARMS:
            values = [100 * value for value in row["arms"][arm]["macro_f1"]]
            figures.append(
                f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"
            )
        area = row["baselines"].get("baseline:stained-area")
        figures.append("-" if area is None else f"{100 * area:.1f}")
        kind = "" if row["dataset"] == REAL else " (twin)"
        lines.append(f"| {row['dataset']}{kind}, {row['protocol']} | {row['n']} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--real", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=Path("runs/captions_effect"))
    parser.add_argument("--out", type=Path, default=RESULT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(parser.parse_args())
