"""A training run with its checkpoints, resumed where it stopped, as a worker of Ray Train does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from his2lip.loss import WISELoss
from his2lip.models.provenance import read_meta
from his2lip.models.resume import load_resume
from his2lip.training import build, run_inputs
from his2lip.training.config import TrainConfig
from his2lip.training.loop import fit
from his2lip.training.progress import StepReport
from his2lip.training.run_directory import RunDir, start_or_resume
from his2lip.training.source import StreamSource


def small_run(shards: str, storage: Path, **changes: Any) -> TrainConfig:
    """8 steps of `tiny`, with a checkpoint after every second one."""
    tree = {
        "name": "small",
        "data": {"shards": shards, "batch_size": 16, "lanes": 4, "loader": "local", "decode_threads": 1},
        "optim": {"lr": 1e-3, "epochs": 2, "warmup": 0.1},
        "checkpoint": {"every_steps": 2, "select_by": "loss"},
        "log_every": 1,
        "storage": str(storage),
    }
    return TrainConfig.model_validate(tree | changes)


def plain_run(config: TrainConfig, *, report: Callable[[StepReport], object] = lambda _: None) -> RunDir:
    """Starts or resumes the run, and returns its folder."""
    config, shards, bank = run_inputs.open_data(run_inputs.with_absolute_paths(config))
    run = RunDir(Path(config.storage) / "train" / config.name)
    with run.locked():
        state = start_or_resume(
            run, identity=run_inputs.identity(config, shards, bank), fresh=False, say=lambda _: None
        )
        if state["status"] == "finished":
            return run
        device = torch.device("cpu")
        build.prepare_process(config, device)
        try:
            saved = load_resume(run.last)
            model = build.build_model(config, device, source=run.last if saved else None)
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
