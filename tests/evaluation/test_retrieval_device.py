"""Ranking on a GPU, on machines without one: tensors are told apart by their device, as CUDA does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_retrieval import searched
from torch.overrides import TorchFunctionMode

from his2lip.evaluation.retrieval import rank

_GPU = torch.device("cuda:0")
_MOVES = ("cpu", "to", "cuda")
_READS = ("numpy", "__array__")
_LISTS = ("__getitem__", "__setitem__", "index_select")  # CUDA takes an index that is on the CPU


class SecondDevice(TorchFunctionMode):
    """Marks tensors that are made on `cuda` and what follows from them, and computes all of them on the CPU.

    Raises RuntimeError where a marked and an unmarked tensor meet, and TypeError where a marked one is read
    as an array: what torch does with tensors of a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.marked: dict[int, torch.Tensor] = {}
        self.calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        given = list(tensors_in([*args, *options.values()]))
        here = [t for t in given if id(t) in self.marked]
        if name == "__get__":  # of a property
            found = func(*args)
            if isinstance(found, torch.device):
                return _GPU if here else found
            return self._mark(found) if here else found
        if name in _READS and here:
            raise TypeError(f"{name} of a tensor that is on {_GPU}")
        asked = options.pop("device", None)
        on_gpu = torch.device(asked).type == "cuda" if asked is not None else bool(here)
        if (
            name not in (*_MOVES, *_LISTS)
            and here
            and any(t.dim() and id(t) not in self.marked for t in given)
        ):
            raise RuntimeError(f"{name}: tensors are on {_GPU} and on cpu")
        found = func(*args, **options)
        self.calls += bool(here)
        if name == "cpu":  # of a tensor that is on the CPU, torch gives the tensor itself
            return found.clone()
        return self._mark(found) if on_gpu else found

    def _mark(self, found: Any) -> Any:
        for tensor in tensors_in([found]):
            self.marked[id(tensor)] = tensor  # kept, so that no other tensor gets its id
        return found


def tensors_in(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def test_a_ranking_on_a_gpu_mixes_no_devices_and_is_that_of_the_cpu() -> None:
    queries, gallery = searched()
    expected = rank(queries, gallery, groups=5)
    with SecondDevice() as device:
        found = rank(queries, gallery, device="cuda", groups=5, block=7 * 90)
    assert device.calls > 100, "the ranking was on the GPU"
    for one, other in zip(found, expected, strict=True):
        for name in ("first", "relevant", "gallery", "precision"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_second_device_refuses_what_a_gpu_refuses() -> None:
    with SecondDevice():
        there, here = torch.as_tensor([1.0, 2.0], device="cuda"), torch.as_tensor([1.0, 2.0])
        assert there.device == _GPU
        assert (there * 2).device == _GPU
        assert (there + 1).cpu().numpy().tolist() == [2, 3]
        with pytest.raises(RuntimeError):
            there + here
        with pytest.raises(RuntimeError):
            torch.stack([there, here])
        with pytest.raises(TypeError):
            (there @ there).numpy()
