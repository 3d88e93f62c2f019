"""The state, stored beside a checkpoint, from which an interrupted run resumes."""

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

from his2lip.config import sealed, unsealed
from his2lip.errors import CheckpointError
from his2lip.files import file_digest
from his2lip.models.adapters import unmerged_state
from his2lip.models.encoder import DualEncoder
from his2lip.models.provenance import current_folder
from his2lip.models.weights import Tensors

FOLDER = "resume"  # inside a checkpoint

_OPTIMIZER, _MODEL, _STATE = "optimizer.safetensors", "model.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """The state of a run after `step` steps.

    optimizer  the optimizer's tensors for each parameter, by the parameter's name and the tensor's
    model      adapters and heads, which the checkpoint stores folded into other tensors
    extra      further state of the training loop, JSON-able

    The learning rate and every random number are functions of the step, so that neither the schedule nor a
    generator has state to store.
    """

    step: int
    optimizer: dict[str, Tensors]
    model: Tensors = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def capture(
        cls,
        model: DualEncoder,
        optimizer: torch.optim.Optimizer,
        trained: nn.Module,
        *,
        step: int,
        extra: Mapping[str, Any],
    ) -> ResumeState:
        """The present state. `trained` contains every parameter of the optimizer under its stored name."""
        return cls(
            step=step,
            optimizer=optimizer_state(optimizer, trained),
            model=unmerged_state(model),
            extra=dict(extra),
        )

    def restore(self, model: DualEncoder, optimizer: torch.optim.Optimizer, trained: nn.Module) -> None:
        """The inverse of `capture`. Raises CheckpointError for a state of another model or configuration."""
        restore_unmerged(model, self.model)
        restore_optimizer(optimizer, trained, self.optimizer)


def save_resume(folder: Path, state: ResumeState) -> None:
    """Writes `optimizer.safetensors`, `model.safetensors` and `state.json` into a new `folder`."""
    folder.mkdir(parents=True)
    moments = {f"{name}/{slot}": t for name, slots in state.optimizer.items() for slot, t in slots.items()}
    for file, tensors in ((_OPTIMIZER, moments), (_MODEL, state.model)):
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / file)
    files = {name: file_digest(folder / name) for name in (_OPTIMIZER, _MODEL)}
    tree = sealed({"step": state.step, "extra": state.extra, "files": files})
    (folder / _STATE).write_text(json.dumps(tree, indent=1), encoding="utf-8")


def load_resume(checkpoint: str | Path) -> ResumeState | None:
    """The state in `checkpoint`/resume, or None where there is none. Raises CheckpointError if damaged."""
    folder = current_folder(Path(checkpoint)) / FOLDER
    if not folder.is_dir():
        return None
    try:
        optimizer: dict[str, Tensors] = {}
        for key, tensor in _read(folder / _OPTIMIZER).items():
            name, _, slot = key.rpartition("/")
            optimizer.setdefault(name, {})[slot] = tensor
        tree = _read_state(folder)
        for name, digest in tree.get("files", {}).items():  # states of earlier versions have no digests
            if file_digest(folder / name) != digest:
                raise _unusable(f"{name} is not what was written", where=folder, key=name)
        return ResumeState(
            step=tree["step"], extra=tree["extra"], optimizer=optimizer, model=_read(folder / _MODEL)
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(str(error), where=folder) from None


def check_resumable(checkpoint: str | Path) -> dict[str, Any]:
    """`extra` of the state in `checkpoint`/resume; empty where there is no checkpoint.

    Raises CheckpointError for a checkpoint without the state: its run would start at step 0 again.
    """
    folder = current_folder(Path(checkpoint))
    if not folder.exists():
        return {}
    if not (folder / FOLDER).is_dir():
        what = f"this checkpoint has no folder '{FOLDER}', from which its run would resume"
        fix = "put the folder back, or start over with --fresh or another name"
        raise CheckpointError(what, where=folder, key=FOLDER, fix=fix)
    try:
        return dict(_read_state(folder / FOLDER)["extra"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(str(error), where=folder / FOLDER) from None


def _read_state(folder: Path) -> dict[str, Any]:
    return unsealed(json.loads((folder / _STATE).read_text(encoding="utf-8")))


def _read(file: Path) -> Tensors:
    """The tensors of a file, in memory of their own: safetensors maps the file as long as they are used.

    On NFS a mapped file cannot be removed, so that the folder of a checkpoint could not be replaced.
    """
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensors]:
    """The optimizer's tensors for each parameter of `module`, by the parameter's name there."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if p in optimizer.state}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, saved: Mapping[str, Tensors]
) -> None:
    """The inverse of `optimizer_state`; a parameter that has had no gradient has no state.

    Raises CheckpointError, whose key is the parameter, for one that is not trained here or has another shape.
    """
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    known = {name: p for name, p in module.named_parameters() if p in trained}
    for name, slots in saved.items():
        if name not in known:
            raise _unusable(f"it is of another model, which has '{name}'", key=name)
        if any(t.ndim and t.shape != known[name].shape for t in slots.values()):
            raise _unusable(f"its tensors for '{name}' have another shape", key=name)
    names = {p: name for name, p in known.items()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    state = {number: saved[name] for number, name in enumerate(order) if name in saved}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_unmerged(model: DualEncoder, saved: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `unmerged_state`. Raises CheckpointError unless adapters and heads are the same."""
    expected = unmerged_state(model)
    odd = [name for name in {**expected, **saved} if name not in expected or name not in saved]
    if odd:
        raise _unusable(f"it and this run's finetune section disagree on '{odd[0]}'", key=odd[0])
    model.clip.load_state_dict(dict(saved), strict=False)


def _unusable(why: str, *, where: Path | None = None, key: str | None = None) -> CheckpointError:
    what = f"the state to resume from cannot be used: {why}"
    fix = "resume from an earlier checkpoint, or start over with --fresh"
    return CheckpointError(what, where=where, key=key, fix=fix)
