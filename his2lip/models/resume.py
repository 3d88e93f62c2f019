"""What a stopped run needs to go on beside its weights: optimizer, schedule, generators; no pickle."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from his2lip.errors import CheckpointError

_TENSORS, _STATE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """The state of a run after `step` steps.

    optimizer   a torch optimizer's `state_dict()`
    scheduler   the learning-rate schedule's own JSON-able state
    rng         `capture_rng()`
    extra       whatever else the loop keeps, JSON-able
    """

    step: int
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def save_resume(folder: Path, state: ResumeState) -> None:
    """Writes `optimizer.safetensors` and `state.json` into a new `folder`."""
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    tree = {
        "step": state.step,
        "optimizer": _flatten(state.optimizer, "optimizer", tensors),
        "scheduler": state.scheduler,
        "rng": state.rng,
        "extra": state.extra,
    }
    save_file(tensors, folder / _TENSORS)
    (folder / _STATE).write_text(json.dumps(tree, indent=1), encoding="utf-8")


def load_resume(folder: str | Path) -> ResumeState | None:
    """The state in `folder`/resume, or None where it carries none. Raises CheckpointError if broken."""
    folder = Path(folder) / "resume"
    if not folder.is_dir():
        return None
    try:
        tensors = load_file(folder / _TENSORS)
        tree = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return ResumeState(**tree | {"optimizer": _restore(tree["optimizer"], tensors)})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        mend = "take an earlier checkpoint, or start anew with --fresh"
        raise CheckpointError(
            f"the state to go on from cannot be read: {error}", where=folder, mend=mend
        ) from None


def capture_rng() -> dict[str, Any]:
    """Python's, numpy's and torch's generators (every visible GPU's too), JSON-able."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": _pack(torch.get_rng_state()),
        "cuda": [_pack(state) for state in cuda],
    }


def restore_rng(rng: Mapping[str, Any]) -> None:
    """Puts the generators back as `capture_rng` found them."""
    version, words, gauss = rng["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = rng["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_unpack(rng["torch"]))
    if rng["cuda"] and torch.cuda.device_count() == len(rng["cuda"]):
        torch.cuda.set_rng_state_all([_unpack(state) for state in rng["cuda"]])


def _flatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON, tensors moved to `tensors` under their name; int keys and tuples survive."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[k, _flatten(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, tuple | list):
        items = [_flatten(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint does not hold")


def _restore(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `_flatten`."""
    if isinstance(value, list):
        return [_restore(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_restore(v, tensors) for v in value["tuple"])
    return {k: _restore(v, tensors) for k, v in value["items"]}


def _pack(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _unpack(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
