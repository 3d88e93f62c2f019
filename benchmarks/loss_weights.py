"""Do weights other than (1, 0.5, 0.5) train better than the spread from seed to seed? On generated patches.

Usage: nice python benchmarks/loss_weights.py [--work DIR]

First a sweep of twelve trials with one seed, whose metric is macro F1 on the `select` split. Then four arms
with five other seeds each: the default weights and the best others, each with kappa = 1 and with kappa tied
to the logit scale. They are compared seed by seed on patches of another seed of the generator, which chose
nothing, and on captions that no run trained on. docs/loss_weights.md contains the tables, docs/images the
plots. The same command resumes an interrupted measurement. It takes about half an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from his2lip import load_model
from his2lip.config import set_values, validate
from his2lip.data.captions import CaptionBank
from his2lip.data.captions.left_out import leave_out
from his2lip.data.shards import INFO
from his2lip.evaluation import SelectValidator
from his2lip.runtime import start_ray
from his2lip.synthetic import write_twin
from his2lip.training import RunDir, TrainConfig, run_in_process
from his2lip.tuning import Arm, SweepConfig, compare_arms, run_sweep, training_objective

HERE = Path(__file__).parent
RESULT = HERE / "results/loss_weights.json"
IMAGES = HERE.parent / "docs/images"
BETA, GAMMA, KAPPA = "loss.weights.image_image", "loss.weights.text_text", "loss.kappa"
DEFAULT = {BETA: 0.5, GAMMA: 0.5, KAPPA: 1.0}
SEEDS = (0, 1, 2, 3, 4)
SWEEP_SEED = 100  # of the trials of the sweep: another one than those of the comparison
TRIALS = 12
FIGURES = {"macro_f1": "macro F1", "retrieval": "retrieval (mean average precision)"}


def main(work: Path) -> None:
    """Runs what is missing, writes the result and the plots, and prints the tables."""
    captions = make_data(work)
    swept = sweep(work)
    arms = choose(swept)
    runs = [train(work, arm, seed) for seed in SEEDS for arm in arms]
    fresh = SelectValidator(str(work / "shards/fresh"), split="train", captions=captions, threads=1).check()
    for run in runs:
        run["fresh"] = evaluate(work, run, fresh)
    tied = [arm for arm in arms if arm[KAPPA] == "scale"]
    result: dict[str, Any] = {"sweep": swept, "runs": runs, "arms": {}, "tied": {}}
    for figure in FIGURES:
        values = [({**run["params"], "seed": run["seed"]}, run["fresh"][figure]) for run in runs]
        result["arms"][figure] = [vars_of(arm) for arm in compare_arms(values, DEFAULT)]
        of_tied = [(params, value) for params, value in values if params[KAPPA] == "scale"]
        result["tied"][figure] = [vars_of(arm) for arm in compare_arms(of_tied, tied[0])]
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result)
    print(tables(result))


def make_data(work: Path) -> tuple[tuple[str, str, str], ...]:
    """Makes shards to train and choose on, fresh shards, and a bank; the captions that are left out of it."""
    for name, seed, scale in (("mihic", 1, 1.0), ("fresh", 2, 0.5)):
        if not (work / "shards" / name / INFO).exists():
            write_twin("mihic", work / "shards" / name, seed=seed, scale=scale)
    place = work / "captions.json"
    if not place.exists():
        bank, left_out = leave_out(CaptionBank.templates(), 0.2)
        CaptionBank(bank.captions, "template", dict(left_out.items()), bank.stained).save(place)
    held_out = CaptionBank.load(place).held_out
    return tuple((text, str(t), str(b)) for (t, b), lines in held_out.items() for text in lines)


def recipe(work: Path) -> dict[str, Any]:
    """The training run of all trials and arms: `tiny` at 48 px, 8 epochs, from random weights."""
    shards, captions = str(work / "shards/mihic"), str(work / "captions.json")
    return {
        "model": {"backbone": "tiny", "image_size": 48},
        "data": {
            "shards": shards, "split": "train", "select": "val", "captions": captions, "batch_size": 64,
            "lanes": 4, "decode_threads": 1,
        },
        "loss": {"tau": 0.5},
        "optim": {"lr": 4e-3, "weight_decay": 0.05, "warmup": 0.05, "epochs": 8},
        "workers": {"threads": 1},
    }  # fmt: skip


def sweep(work: Path) -> list[dict[str, Any]]:
    """Number, parameters and macro F1 on `select` of each trial of the sweep."""
    done = work / "sweep.json"
    if not done.exists():
        ablations = [DEFAULT | {BETA: beta, GAMMA: gamma} for beta, gamma in ((0, 0), (0.5, 0), (0, 0.5))]
        tree = {
            "name": "loss-weights-generated",
            "train": {**recipe(work), "seed": SWEEP_SEED},
            "space": {
                BETA: {"kind": "uniform", "low": 0.0, "high": 2.0},
                GAMMA: {"kind": "uniform", "low": 0.0, "high": 2.0},
                KAPPA: {"kind": "choice", "values": [1.0, "scale"]},
            },
            "points": [DEFAULT, *ablations, DEFAULT | {KAPPA: "scale"}],
            "trials": TRIALS, "max_concurrent": 1, "sampler": {"startup": 9}, "scheduler": {"kind": "none"},
            "split": "val", "storage": str(work),
        }  # fmt: skip
        config = validate(SweepConfig, tree)
        objective = training_objective(config, make_validator=validator_of)
        start_ray(num_cpus=1, object_store_memory=100 << 20)
        trials = run_sweep(config, objective, inputs=objective.inputs).trials
        rows = [{"number": row.number, "params": row.params, "value": row.value} for row in trials]
        done.write_text(json.dumps(rows), encoding="utf-8")
    return list(json.loads(done.read_text(encoding="utf-8")))


def validator_of(config: TrainConfig) -> SelectValidator:
    assert config.data.select is not None
    return SelectValidator(config.data.shards, split=config.data.select, threads=1).check()


def choose(swept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The four arms: for each kappa the default weights, and the best others of the sweep."""
    ranked = sorted((row for row in swept if row["value"] is not None), key=lambda row: -row["value"])
    arms = []
    for kappa in (1.0, "scale"):
        default = DEFAULT | {KAPPA: kappa}
        others = (row["params"] for row in ranked if row["params"][KAPPA] == kappa)
        arms += [default, next(params for params in others if params != default)]
    return arms


def train(work: Path, params: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains one arm with one seed, unless that was done; its parameters, seed, label and curve."""
    label = f"b{params[BETA]:.4g}-g{params[GAMMA]:.4g}-k{params[KAPPA]}-s{seed}"
    folder = work / "runs" / label
    done = folder / "done.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        tree = {**recipe(work), "seed": seed, "checkpoint": {"select_by": "macro_f1"}}
        config = validate(TrainConfig, set_values(tree, params))
        curve: list[dict[str, float]] = []
        run_in_process(
            config,
            report=lambda metrics: curve.append(dict(metrics)),
            validate=validator_of(config),
            folder=folder,
        )
        shutil.rmtree(RunDir(folder).last, ignore_errors=True)
        row = {"params": params, "seed": seed, "label": label, "curve": curve}
        done.write_text(json.dumps(row), encoding="utf-8")
    row = json.loads(done.read_text(encoding="utf-8"))
    row["select"] = [round(epoch["select/macro_f1"], 6) for epoch in row.pop("curve")]
    return dict(row)


def evaluate(work: Path, run: dict[str, Any], fresh: SelectValidator) -> dict[str, float]:
    """The figures of a run's best checkpoint on fresh patches and captions."""
    folder = work / "runs" / run["label"]
    done = folder / "fresh.json"
    if not done.exists():
        figures = fresh(load_model(RunDir(folder).best))
        done.write_text(json.dumps(figures), encoding="utf-8")
    return dict(json.loads(done.read_text(encoding="utf-8")))


def vars_of(arm: Arm) -> dict[str, Any]:
    names = ("params", "seeds", "mean", "spread", "difference", "low", "high")
    return {name: getattr(arm, name) for name in names}


def name_of(params: dict[str, Any]) -> str:
    kappa = "κ = 1" if params[KAPPA] == 1.0 else "κ tied"
    return f"(1, {params[BETA]:.2g}, {params[GAMMA]:.2g}), {kappa}"


def tables(result: dict[str, Any]) -> str:
    """The tables of docs/loss_weights.md, in percent."""
    lines = ["| trial | weights | macro F1 on select, % |", "| --- | --- | --- |"]
    for row in sorted(result["sweep"], key=lambda row: -row["value"]):
        lines.append(f"| {row['number']} | {name_of(row['params'])} | {100 * row['value']:.1f} |")
    for kind, note in (("arms", "(1, 0.5, 0.5), κ = 1"), ("tied", "(1, 0.5, 0.5), κ tied")):
        for figure, title in FIGURES.items():
            lines += ["", f"**{title}**, differences to {note}", ""]
            lines += ["| weights | seeds | mean, % | spread | difference, points | 95 % interval |"]
            lines += ["| --- | --- | --- | --- | --- | --- |"]
            for arm in result[kind][figure]:
                own = f"| {name_of(arm['params'])} | {arm['seeds']} | {100 * arm['mean']:.1f} "
                own += f"| {100 * arm['spread']:.1f} "
                if arm["difference"] is None:
                    lines.append(f"{own}| – | – |")
                else:
                    interval = f"{100 * arm['low']:+.1f} to {100 * arm['high']:+.1f}"
                    lines.append(f"{own}| {100 * arm['difference']:+.1f} | {interval} |")
    return "\n".join(lines)


def draw(result: dict[str, Any]) -> None:
    """The trials of the sweep, and every run of the arms, as images for the page."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    IMAGES.mkdir(exist_ok=True)
    values = [row["value"] for row in result["sweep"]]
    figure, places = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for place, kappa, title in zip(places, (1.0, "scale"), ("κ = 1", "κ tied to the scale"), strict=True):
        rows = [row for row in result["sweep"] if row["params"][KAPPA] == kappa]
        x, y = ([row["params"][key] for row in rows] for key in (BETA, GAMMA))
        seen = place.scatter(
            x, y, c=[100 * row["value"] for row in rows], s=90, cmap="viridis",
            vmin=100 * min(values), vmax=100 * max(values),
        )  # fmt: skip
        for row in rows:
            at = (row["params"][BETA], row["params"][GAMMA])
            place.annotate(f"{100 * row['value']:.0f}", at, xytext=(6, 5), textcoords="offset points")
        place.set(title=title, xlabel="β (image-image)", xlim=(-0.1, 2.1), ylim=(-0.1, 2.1))
    places[0].set_ylabel("γ (text-text)")
    figure.colorbar(seen, label="macro F1 on select, %")
    figure.savefig(IMAGES / "loss_weights_sweep.png", dpi=110)

    figure, places = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for place, (name, title) in zip(places, FIGURES.items(), strict=True):
        arms = result["arms"][name]
        for number, arm in enumerate(arms):
            own = [run["fresh"][name] for run in result["runs"] if run["params"] == arm["params"]]
            place.scatter([number] * len(own), [100 * value for value in own], alpha=0.7)
            place.hlines(100 * arm["mean"], number - 0.25, number + 0.25, color="black")
        place.set_xticks(range(len(arms)), [name_of(arm["params"]).replace(", κ", "\nκ") for arm in arms])
        place.tick_params(axis="x", labelsize=7)
        place.set_title(f"{title}, %", fontsize=10)
    figure.savefig(IMAGES / "loss_weights_seeds.png", dpi=110)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/loss_weights"), help="folder of data and runs"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    main(args.work.resolve())
