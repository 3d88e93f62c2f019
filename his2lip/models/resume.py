"""What a stopped run needs to go on beside its checkpoint: optimizer, adapters, counters; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from his2lip.errors import CheckpointError

_OPTIMIZER, _MODEL, _STATE = "optimizer.safetensors", "model.safetensors", "state.json"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """The state of a run after `step` steps.

    optimizer  for each parameter by its name, what the optimizer keeps of it (`optimizer_state`)
    model      what the checkpoint holds folded into other tensors (`adapters.unmerged_state`)
    extra      whatever else the loop keeps, JSON-able

    The learning rate and every random number are functions of the step, so schedule and generators have no
    state to keep.
    """

    step: int
    optimizer: dict[str, Tensors]
    model: Tensors = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def save_resume(folder: Path, state: ResumeState) -> None:
    """Writes `optimizer.safetensors`, `model.safetensors` and `state.json` into a new `folder`."""
    folder.mkdir(parents=True)
    moments = {f"{name}/{slot}": t for name, slots in state.optimizer.items() for slot, t in slots.items()}
    for file, tensors in ((_OPTIMIZER, moments), (_MODEL, state.model)):
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / file)
    tree = {"step": state.step, "extra": state.extra}
    (folder / _STATE).write_text(json.dumps(tree, indent=1), encoding="utf-8")


def load_resume(folder: str | Path) -> ResumeState | None:
    """The state in `folder`/resume, or None where it carries none. Raises CheckpointError if broken."""
    folder = Path(folder) / "resume"
    if not folder.is_dir():
        return None
    try:
        optimizer: dict[str, Tensors] = {}
        for key, tensor in load_file(folder / _OPTIMIZER).items():
            name, _, slot = key.rpartition("/")
            optimizer.setdefault(name, {})[slot] = tensor
        tree = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return ResumeState(
            step=tree["step"], extra=tree["extra"], optimizer=optimizer, model=load_file(folder / _MODEL)
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise broken_state(str(error), folder) from None


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensors]:
    """What `optimizer` keeps of each parameter of `module`, by the parameter's name there."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if p in optimizer.state}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, saved: Mapping[str, Tensors]
) -> None:
    """The inverse of `optimizer_state`; a parameter that has had no gradient has no state.

    Raises CheckpointError for a name that is not trained here, or tensors of another shape.
    """
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    known = {name: p for name, p in module.named_parameters() if p in trained}
    for name, slots in saved.items():
        if name not in known:
            raise broken_state(f"it is of another model, which has '{name}'")
        if any(t.ndim and t.shape != known[name].shape for t in slots.values()):
            raise broken_state(f"its tensors for '{name}' have another shape")
    names = {p: name for name, p in known.items()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    state = {number: saved[name] for number, name in enumerate(order) if name in saved}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def broken_state(why: str, where: Path | None = None) -> CheckpointError:
    """The one sentence for a state that a run cannot go on from."""
    mend = "take an earlier checkpoint, or start anew with --fresh"
    return CheckpointError(f"the state to go on from cannot be read: {why}", where=where, mend=mend)
