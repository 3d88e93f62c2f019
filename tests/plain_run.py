"""Runs and benchmarks as the processes of Ray do them, with all their files, but in one process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from his2lip.errors import StorageError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_task import Work, score_models
from his2lip.evaluation.leaderboard import write_leaderboard
from his2lip.evaluation.results import CellResult
from his2lip.loss import WISELoss
from his2lip.models.provenance import read_meta
from his2lip.models.resume import load_resume
from his2lip.training import build, run_inputs
from his2lip.training.config import TrainConfig
from his2lip.training.loop import fit
from his2lip.training.progress import StepReport
from his2lip.training.run_directory import RunDir, open_run, start_or_resume
from his2lip.training.source import StreamSource


def small_run(shards: str, storage: str | Path, **changes: Any) -> TrainConfig:
    """8 steps of `tiny`, with a checkpoint after every second one."""
    tree = {
        "name": "small",
        "data": {"shards": shards, "batch_size": 16, "lanes": 4, "loader": "local", "decode_threads": 1},
        "optim": {"lr": 1e-3, "epochs": 2, "warmup": 0.1},
        "checkpoint": {"every_steps": 2, "select_by": "loss"},
        "log_every": 1,
        "workers": {"threads": 1},
        "storage": str(storage),
    }
    return TrainConfig.model_validate(tree | changes)


def plain_run(config: TrainConfig, *, report: Callable[[StepReport], object] = lambda _: None) -> RunDir:
    """Starts or resumes the run, and returns its folder."""
    config, shards, bank = run_inputs.open_data(run_inputs.with_absolute_paths(config))
    run = open_run(config.storage, config.name)
    with run.locked():
        state = start_or_resume(
            run, identity=run_inputs.identity(config, shards, bank), fresh=False, say=lambda _: None
        )
        if state["status"] == "finished":
            return run
        device = torch.device("cpu")
        build.prepare_process(config, device)
        try:
            model, saved = build.build_resumed(config, run, device)
            fit(
                config,
                model,
                WISELoss.from_config(config.loss),
                StreamSource(config, bank, preprocess=model.preprocess),
                report=lambda progress: report(progress) and None,
                save=build.checkpoint_writer(run, config, shards, bank),
                resume=saved,
            )
        finally:
            torch.use_deterministic_algorithms(False)
        run.write({**state, "status": "finished"})
    return run


def outcome(run: RunDir) -> dict[str, Any]:
    """What two equal runs have in common: the weights and the history of both checkpoints."""
    saved = load_resume(run.last)
    assert saved is not None
    history = [
        {k: v for k, v in epoch.items() if "per_second" not in k and "wait" not in k}
        for epoch in saved.extra["run"]["history"]
    ]
    metas = [read_meta(folder) for folder in (run.best, run.last)]
    return {
        "weights": [meta["tensor_digest"] for meta in metas],
        "steps": [meta["step"] for meta in metas],
        "history": history,
        "optimizer": {k: {s: t.tolist() for s, t in v.items()} for k, v in list(saved.optimizer.items())[:3]},
        "left": sorted(p.name for p in run.path.iterdir() if p.name.startswith(".") and p.name != ".lock"),
    }


def told_run(tell: Callable[[object], object], config: TrainConfig) -> None:
    """The run in a process of its own, which tells the number of each step that is done."""
    plain_run(config, report=lambda progress: tell(progress.step))


def told_board(tell: Callable[[object], object], config: BenchmarkConfig) -> None:
    """Scores the benchmark in a process of its own, as the task of a model does, and writes its board."""
    tell("begun")
    score_board(config)


def score_board(config: BenchmarkConfig) -> list[tuple[Any, ...]]:
    """The rows of the benchmark's models, scored in this process, whose board is written."""
    plans, _ = plan_cells(config)
    entries = [row for model in config.models for row in config.rows_of(model)]
    cells = [found.cell for found in score_models(entries, Work(plans, config))]
    scored = [cell for cell in cells if isinstance(cell, CellResult)]
    assert len(scored) == len(cells), cells
    write_leaderboard(config.folder, scored, [], config)
    return [(cell.model, cell.confusion, cell.macro_f1, cell.cell) for cell in scored]


def told_run_with_a_clock_that_jumps_back(
    tell: Callable[[object], object], config: TrainConfig, step: int
) -> None:
    """The run, whose clock is set back by a day at a step, in a process of its own."""
    real = time.time

    def report(progress: StepReport) -> None:
        if progress.step == step:
            time.time = lambda: real() - 86_400  # type: ignore[assignment]
        tell(progress.step)

    plain_run(config, report=report)


def told_prepare(tell: Callable[[object], object], folder: Path, out: str) -> None:
    """`data prepare` of card.yaml in a process of its own, which tells how it ended."""
    from attempts import attempt

    os.chdir(folder)
    tell("begun")
    tell(attempt("data", "prepare", "card.yaml", "--root", "root", "--out", out).ended)


def told_run_that_may_write_less(
    tell: Callable[[object], object], config: TrainConfig, step: int, size: int
) -> None:
    """The run in a process of its own, whose files may have `size` bytes from a step on; tells its error."""

    def report(progress: StepReport) -> None:
        if progress.step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    try:
        plain_run(config, report=report)
    except StorageError as error:
        tell((error.key, str(error.where)))
