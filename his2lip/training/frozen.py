"""Features of a tower that is not trained: each distinct caption or image goes through it once per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from his2lip.models import DualEncoder, Tower, tower_of

# Inputs of one forward pass on the CPU. Their number is always the same, so that a feature does not depend on
# which others are new in its step: a resumed run, which starts without features, ends with the same bits.
_GROUP: dict[Tower, int] = {"text": 1, "image": 8}
_FIRST_ROWS = 1024


class FrozenFeatures:
    """Features, float32 (D,) each, by caption or patch id; they stay in memory (2 KB each for D = 512)."""

    def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor], *, group: int | None) -> None:
        """
        encode  inputs (B, …) -> features (B, D)
        group   inputs of each forward pass, filled up with repetitions; None: all that are new at once
        """
        self._encode, self._group = encode, group
        self._rows: dict[str, int] = {}
        self._table: torch.Tensor | None = None

    def __call__(self, keys: Sequence[str], inputs: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """Features (B, D) of B keys; `inputs` gives those at some places of `keys`, for the new ones."""
        new = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._rows}
        if new:
            self._add(sorted(new, key=new.__getitem__), sorted(new.values()), inputs)
        assert self._table is not None
        return self._table[[self._rows[key] for key in keys]]

    def _add(self, keys: list[str], places: list[int], inputs: Callable[[list[int]], torch.Tensor]) -> None:
        size = self._group or len(places)
        parts = [places[start : start + size] for start in range(0, len(places), size)]
        with torch.no_grad():
            found = [
                self._encode(inputs(part + part[-1:] * (size - len(part))))[: len(part)] for part in parts
            ]
        begin = len(self._rows)
        self._rows |= {key: begin + i for i, key in enumerate(keys)}
        features = torch.cat(found)
        table = features.new_empty((_FIRST_ROWS, features.shape[1])) if self._table is None else self._table
        while len(table) < len(self._rows):
            table = torch.cat([table, torch.empty_like(table)])
        table[begin : len(self._rows)] = features
        self._table = table


def frozen_features(model: DualEncoder, tower: Tower) -> FrozenFeatures | None:
    """The features of a tower in which nothing is trained; None for any other tower."""
    own = [p for name, p in model.clip.named_parameters() if tower_of(name) == tower]
    if any(parameter.requires_grad for parameter in own):
        return None
    encode = model.encode_image if tower == "image" else model.encode_text
    group = _GROUP[tower] if model.device.type == "cpu" else None
    return FrozenFeatures(lambda inputs: encode(inputs, normalize=False), group=group)
