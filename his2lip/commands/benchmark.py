"""`his2lip benchmark`: the grid on Ray, its cells on the terminal, in MLflow and on the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from his2lip import resources
from his2lip.commands.console import Progress, percent, say, table
from his2lip.config import digest, load, resolved
from his2lip.errors import ConfigError, did_you_mean
from his2lip.runtime import start_ray
from his2lip.tracking import RUN_ID, Run, Tracker

if TYPE_CHECKING:
    from his2lip.evaluation import BenchmarkConfig, GridResult, ModelEntry

EXPERIMENT = "his2lip-benchmark"


def run_benchmark(
    config_file: str,
    overrides: Sequence[str],
    *,
    models: list[str] | None = None,
    datasets: list[str] | None = None,
) -> GridResult:
    """Scores what is not scored yet; exits with 1 where cells failed, after all others are done."""
    config = configure(config_file, overrides, models=models, datasets=datasets)
    result = run_configured(config)
    if result.failed:
        raise typer.Exit(1)
    return result


def run_configured(config: BenchmarkConfig) -> GridResult:
    """Runs the grid and records it; failed cells are said, not raised."""
    from his2lip.commands.report import write_report
    from his2lip.evaluation import run_grid
    from his2lip.files import check_writable

    check_writable(config.folder, fix="set storage to a place of yours")
    check_writable(config.cache, fix="set cache to a place of yours")
    tracker = Tracker.open()
    config = _with_local_models(config)
    _say_licences(config)
    start_ray()
    total = len(config.models) * len(config.uris()) * len(config.protocols)
    with tracker.run(EXPERIMENT, config.name, resolved(config), tags={RUN_ID: digest(config)}) as run:
        done = 0
        with Progress(config.name) as bar:

            def on_cell(outcome: object) -> None:
                nonlocal done
                done += 1
                bar.update(f"{done} cells (about {total} of models), {outcome.model} on {outcome.dataset}")  # type: ignore[attr-defined]

            result = run_grid(config, on_cell=on_cell)
        record(run, config, result)
        page = write_report(Path(config.folder))
        run.artifact(page)
    say_result(config, result, page)
    return result


def _say_licences(config: BenchmarkConfig) -> None:
    """Names the licence of every model whose weights are not for any use."""
    from his2lip.models import BACKBONES

    named = {m.path: BACKBONES[m.path] for m in config.models if m.path in BACKBONES}
    for backbone in named.values():
        if backbone.commercial is False:
            say(f"{backbone.name}: licence {backbone.licence} ({backbone.weights})")


def _with_local_models(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same benchmark for tasks that know no MLflow store; rows keep their names."""
    from his2lip.models import local_name

    def local(entry: ModelEntry) -> ModelEntry:
        blend = entry.blend
        if blend is not None:
            blend = blend.model_copy(update={"base": local_name(blend.base, config.storage)})
        return entry.model_copy(update={"path": local_name(entry.path, config.storage), "blend": blend})

    return config.model_copy(update={"models": [local(entry) for entry in config.models]})


def configure(
    config_file: str, overrides: Sequence[str], *, models: list[str] | None, datasets: list[str] | None
) -> BenchmarkConfig:
    """The benchmark's configuration; `models` takes the place of the file's, `datasets` narrows it."""
    from his2lip.evaluation import BenchmarkConfig

    chosen = list(overrides)
    if models is not None:
        chosen.append(f"models={models}")
    config = load(BenchmarkConfig, resources.find(config_file), chosen)
    if datasets is None:
        return config
    known = config.uris()
    for name in datasets:
        if name not in known:
            raise ConfigError(f"the benchmark has no dataset '{name}'", fix=did_you_mean(name, known))
    return config.model_copy(update={"datasets": {name: known[name] for name in datasets}})


def record(run: Run, config: BenchmarkConfig, result: GridResult) -> None:
    """Each model as a logged model, each cell as its metrics on the dataset."""
    paths = {entry.name: entry.path for entry in config.models if entry.blend is None}
    written = run.children()
    for cell in (c for c in result.cells if c.cell not in written):
        run.cell(
            cell.cell,
            model=cell.model,
            model_id=run.model(cell.model, digest=cell.weights_sha256, path=paths.get(cell.model)),
            dataset=cell.dataset,
            protocol=cell.protocol,
            digest=cell.split_sha256,
            metrics={name: getattr(cell, name) for name in ("accuracy", "macro_f1", "balanced_accuracy")},
            generated=cell.generated,
        )


def say_result(config: BenchmarkConfig, result: GridResult, page: Path) -> None:
    """Macro F1 of every model on every dataset, then what failed and where the rest is."""
    columns = list(dict.fromkeys((c.dataset, c.protocol) for c in result.cells))
    scores = {(c.model, c.dataset, c.protocol): c.macro_f1 for c in result.cells}
    models = list(dict.fromkeys(c.model for c in result.cells))
    say("macro F1, percent" + (" (generated twins)" if any(c.generated for c in result.cells) else ""))
    rows = [[m, *(percent(scores.get((m, *column))) for column in columns)] for m in models]
    several = len({protocol for _, protocol in columns}) > 1
    table(["model", *(f"{d} {p}" if several else d for d, p in columns)], rows)
    for failure in result.failed:
        say(f"failed: {failure.model} on {failure.dataset} ({failure.protocol}): {failure.reason}")
    say(f"{result.ran} cells scored now, {len(result.cells) - result.ran} were finished; "
        f"{result.counts.images} images embedded")  # fmt: skip
    if any(model.blend is not None for model in config.models):
        curve = page.with_name("alpha.csv")
        fix = "none: it takes a dataset that the tuned model was trained on, and one that it was not"
        say(f"curve over alpha: {curve if curve.is_file() else fix}")
    say(f"leaderboard: {page}")
