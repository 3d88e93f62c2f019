"""Weight files: only tensors are read from them, and their names and shapes are checked against a model."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from his2lip.errors import CheckpointError, His2lipError

Tensors = dict[str, torch.Tensor]

# CLIP clamps the scale at 100, which is 4.6 as a logarithm. An exponentiated scale starts at 14.
_HIGHEST_LOG_SCALE = 10.0

_LFS_POINTER = b"version https://git-lfs"
_LISTED = 3  # tensor names that an error lists
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # keys under which training scripts store a state dict


def read_tensors(path: str | Path) -> Tensors:
    """The state dict in a `.safetensors`, `.pt`, `.pth` or `.bin` file, on the CPU.

    Pickle files are opened with `weights_only=True`: a file with anything but tensors and plain containers is
    refused, and nothing in it runs. A wrapping `state_dict` key and a `module.` prefix are removed. Raises
    CheckpointError for a file that is absent, damaged, or no state dict.
    """
    path = Path(path)
    try:
        tree = load_file(path) if _is_safetensors(path) else _unpickle(path)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError("this weight file does not exist", where=path, key=path.name) from None
    except His2lipError:
        raise
    except pickle.UnpicklingError:
        what = "this file holds more than tensors (a pickle can run any program) and was not opened"
        fix = "ask its authors for safetensors, or for a file saved from model.state_dict()"
        raise CheckpointError(what, where=path, key="pickle", fix=fix) from None
    except Exception as error:  # for bytes of another format, torch's reader raises errors of any type
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        if isinstance(error, LookupError):  # its text is the byte that is no instruction of a pickle
            reason = "its bytes are not those of a weight file"
        what = f"this weight file cannot be read: {reason}"
        raise CheckpointError(what, where=path, fix="copy it again") from None
    return _state_dict(tree, path)


def load_weights(clip: nn.Module, state: Mapping[str, torch.Tensor], *, where: str | Path) -> None:
    """Loads `state` into `clip`. Raises CheckpointError for tensors of another model or invalid values."""
    check_tensors(state, {name: tuple(t.shape) for name, t in clip.state_dict().items()}, where=where)
    check_kinds(state, weights_of(clip), where=where)
    check_values(state, where=where)
    clip.load_state_dict(state)


def check_values(state: Mapping[str, torch.Tensor], *, where: str | Path) -> None:
    """Raises CheckpointError, whose key is the tensor, for NaN, infinity, or a scale that is no logarithm."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not _finite(tensor):
            what = f"the tensor {name} contains NaN or infinity"
            fix = "use a checkpoint from before its training diverged, or copy it again"
            raise CheckpointError(what, where=where, key=name, fix=fix)
    log_scale = state.get("logit_scale")
    if log_scale is not None and float(log_scale.max()) > _HIGHEST_LOG_SCALE:
        what = f"logit_scale is {float(log_scale.max()):.4g}, which is not a logarithm"
        fix = "store the logarithm of the scale, as CLIP does (2.66 at the start of training)"
        raise CheckpointError(what, where=where, key="logit_scale", fix=fix)


def check_kinds(found: Mapping[str, torch.Tensor], weights: Iterable[str], *, where: str | Path) -> None:
    """Raises CheckpointError, whose key is the tensor, where one named in `weights` is not of real floats.

    torch would cast the integers of a quantised model, and complex numbers, without an error.
    """
    for name in weights:
        if name in found and not found[name].is_floating_point():
            what = f"the tensor {name} is {str(found[name].dtype).removeprefix('torch.')}, which is no weight"
            fix = "use a file in float32, float16 or bfloat16, not a quantised one"
            raise CheckpointError(what, where=where, key=name, fix=fix)


def weights_of(network: nn.Module) -> list[str]:
    """The names of a network's tensors that are weights; others are counters and indices."""
    return [name for name, tensor in network.state_dict().items() if tensor.is_floating_point()]


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite. Their sum, which costs a fifth, then is too, unless it overflows."""
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


def check_tensors(
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...] | None],
    *,
    where: str | Path,
) -> None:
    """Raises CheckpointError unless `found` has exactly the names and shapes of `expected` (None: any shape).

    The error's key is the first tensor at fault.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = {
        name: f"{name} is {tuple(found[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if shape is not None and name in found and tuple(found[name].shape) != tuple(shape)
    }
    for problem, names in (("lacks", missing), ("has unknown tensors", extra)):
        if names:
            raise _tensors_refused(problem, names, names[0], where)
    if misshapen:
        raise _tensors_refused(
            "has misshapen tensors", list(misshapen.values()), next(iter(misshapen)), where
        )


def _tensors_refused(problem: str, descriptions: list[str], key: str, where: str | Path) -> CheckpointError:
    more = f" and {len(descriptions) - _LISTED} more" if len(descriptions) > _LISTED else ""
    what = f"the checkpoint {problem}: {', '.join(descriptions[:_LISTED])}{more}"
    return CheckpointError(what, where=where, key=key)


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by suffix or contents. Raises CheckpointError for a git-lfs pointer."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_LFS_POINTER):
        what = "this is a git-lfs pointer, not the weights"
        raise CheckpointError(what, where=path, key="git-lfs", fix="run git lfs pull in its repository")
    return path.suffix == ".safetensors" or start[8:10] == b'{"'  # a length of 8 bytes, then JSON


def _unpickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(tree: Any, path: Path) -> Tensors:
    for wrapper in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tree.items()
    ):
        raise CheckpointError("this file has no state dict (a tensor for each name)", where=path)
    prefixed = bool(tree) and all(name.startswith("module.") for name in tree)
    return {name.removeprefix("module.") if prefixed else name: tensor for name, tensor in tree.items()}
