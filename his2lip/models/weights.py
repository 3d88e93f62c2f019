"""Files that others publish: tensors alone are read from them, and their names and shapes are checked."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from his2lip.errors import CheckpointError

_NAMED = 3  # how many tensor names an error lists
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a `.safetensors`, `.pt`, `.pth` or `.bin` file, on the CPU.

    Pickle files are opened with `weights_only=True`: one that holds anything but tensors and plain containers
    is refused, and nothing in it runs. A wrapping `state_dict` key and a `module.` prefix are removed.
    """
    path = Path(path)
    try:
        tree = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError("this weight file does not exist", where=path) from None
    except pickle.UnpicklingError:
        what = "this file holds more than tensors (a pickle can run any program) and was not opened"
        fix = "ask its authors for safetensors, or for a file saved from model.state_dict()"
        raise CheckpointError(what, where=path, fix=fix) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        what = f"this weight file cannot be read: {reason}"
        raise CheckpointError(what, where=path, fix="copy it again") from None
    return _state_dict(tree, path)


def check_tensors(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...] | None], *, where: str | Path
) -> None:
    """Refuses, by name, tensors that are missing, unknown or of another shape than `wanted` (None: any)."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if shape is not None and name in found and tuple(found[name].shape) != tuple(shape)
    ]
    problems = {"lacks": missing, "has unknown tensors": extra, "has misshapen tensors": shapes}
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise CheckpointError(f"the checkpoint {problem}: {', '.join(names[:_NAMED])}{more}", where=where)


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(tree: Any, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping) or not all(isinstance(v, torch.Tensor) for v in tree.values()):
        raise CheckpointError("this file holds no state dict (names with a tensor each)", where=path)
    prefixed = bool(tree) and all(name.startswith("module.") for name in tree)
    return {name.removeprefix("module.") if prefixed else name: tensor for name, tensor in tree.items()}
