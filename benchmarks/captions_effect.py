"""What captions that follow the staining change: the same recipe with each kind of captions, some seeds.

Usage: python benchmarks/captions_effect.py [--seeds 3] [--steps 240] [--own NAMES] [--real DIR] [--work DIR]

Each model is `tiny`, trained by train/demo_train.yaml with batches of 32, and scored by protocols of twins
and of the real BCData images in DIR (the layout that the authors publish). Part `mihic`: trained on the
MIHIC twin, `--steps` steps, and scored on other datasets. Part `own`: trained on the train split of a twin of
HER2-IHC-40x, IHC4BC or BCData, 100 steps, and scored on its test split. docs/captions.md contains the tables.
The real images choose nothing: they are only scored.
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
from his2lip.data.captions import plain
from his2lip.data.shards import INFO, open_shards
from his2lip.errors import DatasetError
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.evaluation.grid_cell import CellPlan
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_task import Work, score_models
from his2lip.evaluation.results import CellResult
from his2lip.resources import find
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
BATCH = 32
OWN = ("her2-ihc-40x", "ihc4bc", "bcdata")
OWN_SCALE, OWN_STEPS = 4.0, 100
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
        {"name": f"{arm}/{seed}", "path": train(args.work / "models", arm, seed, shards["mihic"], args.steps)}
        for seed in range(args.seeds)
        for arm in ARMS
    ]
    cells = grid(args, "twins", models, shards)
    if args.real is not None:
        of_real = grid(args, "real", models, {"bcdata": real})
        cells |= {(m, REAL, p): cell for (m, _, p), cell in of_real.items()}
    rows = {"mihic": summary(cells), "own": []}
    for name in args.own:
        rows["own"] += own_rows(args, name, real if name == "bcdata" and args.real else None)
    result = {
        "recipe": "train/demo_train.yaml", "batch_size": BATCH, "steps": args.steps, "own_steps": OWN_STEPS,
        "own_scale": OWN_SCALE, "own": args.own, "seeds": args.seeds, "machine": machine(1), "arms": ARMS,
        "cells": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for part in rows.values():
        print(table(part), end="\n\n")


def own_rows(args: argparse.Namespace, name: str, real: str | None) -> list[dict[str, Any]]:
    """The rows of models that were trained on a dataset's own twin; an arm may be refused."""
    place = str(args.work / "shards/own" / name)
    if not Path(place, INFO).exists():
        write_twin(name, place, scale=OWN_SCALE)
    models = [{"name": "untrained", "path": "tiny"}]
    for seed in range(args.seeds):
        for arm in ARMS:
            try:
                path = train(args.work / "own" / name, arm, seed, place, OWN_STEPS)
            except DatasetError as error:
                print(f"{name}, {arm}: {error}", flush=True)
            else:
                models.append({"name": f"{arm}/{seed}", "path": path})
    cells = grid(args, f"own-{name}", models, {name: place})
    if real is not None:
        of_real = grid(args, f"own-{name}-real", models, {name: real})
        cells |= {(m, REAL, p): cell for (m, _, p), cell in of_real.items()}
    return summary(cells)


def train(
    folder: Path, arm: str, seed: int, shards: str, steps: int, overrides: dict[str, object] | None = None
) -> str:
    """Trains one model, if it is not there; the folder of its checkpoint. Raises DatasetError if refused.

    overrides  of the recipe; default: those of the arm
    """
    folder = folder / f"{arm.replace(', ', '-').replace(' ', '')}-{seed}"
    if not (folder / "best/his2lip.json").exists():
        settings = {
            "seed": seed, "data.shards": shards, "data.select": None, "checkpoint.select_by": "loss",
            "data.batch_size": BATCH, "optim.steps": steps, **(ARMS[arm] if overrides is None else overrides),
        }  # fmt: skip
        config = load(TrainConfig, find("train/demo_train.yaml"), settings)
        print(f"training {folder}", flush=True)
        run_in_process(config, report=lambda metrics: False, folder=folder)
    return str(folder / "best")


def grid(
    args: argparse.Namespace,
    name: str,
    models: list[dict[str, str]],
    uris: dict[str, str],
    unwanted: frozenset[str] = frozenset(),
) -> dict[tuple[str, str, str], CellResult]:
    """Scores the models and two baselines in this process: (model, dataset, protocol) -> result.

    unwanted  captions in the form of `plain`; the work stops where a prompt is one of them
    """
    offered = {p for uri in uris.values() for p in open_shards(uri).info.card["protocols"]}
    protocols = [p for p in PROTOCOLS if p in offered]
    tree = {
        "name": name, "models": models, "datasets": uris, "protocols": protocols,
        "baselines": ["chance", "stained-area"], "storage": str(args.work), "cache": str(args.work / "cache"),
    }  # fmt: skip
    config = BenchmarkConfig.model_validate(tree)
    plans, failed = plan_cells(config)
    for plan in plans:
        assert isinstance(plan, CellPlan)  # the protocols of `PROTOCOLS` have prompts
        shared = {line for line in plan.prompts.all_sentences() if plain(line) in unwanted}
        if shared:
            raise SystemExit(f"{plan.dataset}: prompts that are captions too: {sorted(shared)[:3]}")
    baselines = [ModelEntry(name=PREFIX + kind, path=PREFIX + kind) for kind in config.baselines]
    cells = [outcome.cell for outcome in score_models([*config.models, *baselines], Work(plans, config, {}))]
    failures = [*failed, *(cell for cell in cells if not isinstance(cell, CellResult))]
    if failures:
        raise SystemExit(f"grid cells failed: {failures}")
    return {(c.model, c.dataset, c.protocol): c for c in cells if isinstance(c, CellResult)}


def summary(cells: dict[tuple[str, str, str], CellResult]) -> list[dict[str, Any]]:
    """Macro F1 of each seed, and the share of units that each class is predicted for, by arm and protocol."""
    rows = []
    for dataset, protocol in dict.fromkeys((d, p) for _, d, p in cells):
        of_arm: dict[str, Any] = {}
        for arm in ARMS:
            own = [
                c
                for (m, d, p), c in cells.items()
                if (d, p) == (dataset, protocol) and m.startswith(f"{arm}/")
            ]
            of_arm[arm] = {"macro_f1": [c.macro_f1 for c in own], "predicted": [predicted(c) for c in own]}
        here = {m: c for (m, d, p), c in cells.items() if (d, p) == (dataset, protocol)}
        first = next(iter(here.values()))
        baselines = {m: c.macro_f1 for m, c in here.items() if "/" not in m}
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
            if not values:
                figures.append("refused")
                continue
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--own", nargs="*", choices=OWN, default=list(OWN), help="datasets of the part `own`")
    parser.add_argument("--real", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=Path("runs/captions_effect"))
    parser.add_argument("--out", type=Path, default=RESULT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(parser.parse_args())
