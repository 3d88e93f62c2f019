"""What a benchmark writes to MLflow: a run per model and per grid cell, and the table of the models."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.errors import His2lipError

if TYPE_CHECKING:
    from his2lip.evaluation import BenchmarkConfig, CellResult, GridResult, ModelEntry, TaskCell
    from his2lip.report import Summary
    from his2lip.tracking import Column, Run

CHECKPOINT = "model_path"  # parameter: what loads a model; a training config has a section `checkpoint`


def record_benchmark(run: Run, config: BenchmarkConfig, result: GridResult, folder: Path) -> None:
    """Writes the models and the grid cells of a benchmark to its run, as child runs and logged models.

    That is the whole board: also what a call that scored some of the datasets has kept of the others.

    folder  of the benchmark on this machine; the plots are drawn into it
    """
    from his2lip.config import digest
    from his2lip.report import (
        MEAN,
        draw_board,
        draw_retrieval,
        draw_robustness,
        summaries,
        with_pooled_draws,
    )

    board, board_tasks = [*result.cells, *result.kept], [*result.tasks, *result.kept_tasks]
    order = list(dict.fromkeys(cell.model for cell in board))
    datasets = [*config.uris(), *(cell.dataset for cell in board)]
    board.sort(key=lambda cell: (order.index(cell.model), datasets.index(cell.dataset)))
    plots = folder / "report" / "plots"
    of_tasks = (*draw_retrieval(board_tasks, plots), *draw_robustness(board_tasks, plots))
    for image in (*draw_board(board, plots), *of_tasks):
        run.artifact(image, "plots")

    rows = summaries(board)
    entries = {entry.name: entry for entry in config.models}
    named = dict.fromkeys([*(row.model for row in rows), *(task.model for task in board_tasks)])
    facts = {model: _facts(entries[model]) if model in entries else {} for model in named}
    # A cell's record also has its order with the other models, which changes when one is added.
    pooled = with_pooled_draws(board)
    cells = {digest({"cell": c.cell, "model": c.model, "order": c.prompt_order}): c for c in pooled}
    own = {row.model: [cell for cell in board if cell.model == row.model] for row in rows}
    models = {
        digest(
            {
                "summary": asdict(row),
                "facts": facts[row.model],
                "cells": [[c.cell, c.calibration and c.calibration.temperature] for c in own[row.model]],
            }
        ): row
        for row in rows
    }
    tasks = {digest({"cell": t.cell, "model": t.model}): t for t in board_tasks}
    run.keep_children([*cells, *models, *tasks])
    for child, cell in cells.items():
        _record_cell(run, child, cell, facts.get(cell.model, {}))
    for child, task in tasks.items():
        _record_task(run, child, task, facts[task.model])
    for child, row in models.items():
        known = facts[row.model]
        run.model_run(
            child,
            model=run.model(row.model, digest=row.weights, path=known.get(CHECKPOINT), params=known),
            metrics=row.figures,
            params={"baseline": row.is_baseline, "weights_sha256": row.weights, **known, **row.bases},
            headline=[name for name in row.figures if name.startswith(MEAN)],
            note=row.note,
            images=_drawn(config.folder, own[row.model], plots / child[:16]),
        )
    for old in plots.glob("*/"):
        if not any(child.startswith(old.name) for child in models):
            shutil.rmtree(old)
    if rows:
        run.table(_columns(rows, board), sort=MEAN)


def _record_cell(run: Run, child: str, cell: CellResult, facts: dict[str, Any]) -> None:
    from his2lip.evaluation import figures
    from his2lip.report import DECIMALS

    values = {name: round(value, DECIMALS) for name, value in figures(cell).items()}
    run.cell(
        child,
        model=run.model(cell.model, digest=cell.weights_sha256, path=facts.get(CHECKPOINT), params=facts),
        scored_as=cell.scored_as,
        digest=cell.split_sha256,
        metrics=values | {"n": cell.n, "clusters": cell.clusters},
        params={
            "dataset": cell.dataset,
            "protocol": cell.protocol,
            "generated": cell.generated,
            "cluster_kind": cell.cluster_kind,
            "no_interval": cell.no_interval or "",
            "caveat": cell.caveat or "",
        },
        order_depends_on_prompts=cell.order_depends_on_prompts,
    )


def _drawn(benchmark: str, cells: Sequence[CellResult], folder: Path) -> list[Path]:
    """The plots of the model of these grid cells, drawn once for the same figures."""
    from his2lip.report import draw_model, draw_reliability

    if not folder.exists():
        part = folder.with_suffix(".part")  # one that was killed is not taken for all the plots
        draw_model(cells, cells[0].model, part)
        draw_reliability(benchmark, cells, part)
        part.replace(folder)
    return sorted(folder.glob("*.png"))


def _record_task(run: Run, child: str, task: TaskCell, facts: dict[str, Any]) -> None:
    """Every figure by TASK/SETTING/FIGURE, and the sizes that it rests on by TASK/SETTING/SIZE."""
    from his2lip.report import DECIMALS

    values = {name: round(value, DECIMALS) for name, value in task.metrics().items()}
    run.cell(
        child,
        model=run.model(task.model, digest=task.weights_sha256, path=facts.get(CHECKPOINT), params=facts),
        scored_as=task.scored_as,
        digest=task.split_sha256,
        metrics=values | task.all_sizes(),
        params={
            "dataset": task.dataset,
            "task": task.task,
            "generated": task.generated,
            "caveat": task.caveat or "",
        },
    )


def _columns(rows: Sequence[Summary], cells: Sequence[CellResult]) -> list[Column]:
    """The columns of MLflow's table of models."""
    from his2lip.report import table_columns
    from his2lip.tracking import Column

    metrics = {name for row in rows for name in row.figures}
    letters = {name: max(len(row.bases.get(name, "")) for row in rows) for name in table_columns(cells)}
    columns = [Column(name=name, is_metric=name in metrics, letters=count) for name, count in letters.items()]
    return [*columns, Column(name=CHECKPOINT, is_metric=False, letters=40)]


def _facts(entry: ModelEntry) -> dict[str, Any]:
    """What a model is: what loads it, the terms of its use, and the config that it was trained under."""
    from his2lip.models import absolute_name, meta_of, terms_summary

    if entry.blend is not None:
        return {"blend": entry.blend.model_dump()}
    try:
        meta = meta_of(entry.path)
    except His2lipError:  # it was damaged since it was scored
        meta = {}
    terms = terms_summary(entry.path, meta)
    return {CHECKPOINT: absolute_name(entry.path), "terms": terms, **meta.get("config", {})}
