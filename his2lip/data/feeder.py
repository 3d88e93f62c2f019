"""The feeder: has threads decode batches in place, a few batches ahead of their consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from his2lip.data.augment import Augment, Draw, Pixels
from his2lip.data.batch import Batch
from his2lip.data.order import Plan
from his2lip.data.pixels import decode_into
from his2lip.data.shelf import Pick, Shelf
from his2lip.errors import DatasetError, ImageError
from his2lip.taxonomy import biomarker_id, tissue_id


@dataclass(frozen=True)
class Recipe:
    """How a row becomes a pair: `draw` gives its caption, all else its pixels."""

    seed: int
    size: int
    interpolation: str
    augment: Augment
    draw: Draw


class Labels(NamedTuple):
    """What goes with the pixels of some rows of a batch."""

    captions: list[str]
    patch_ids: list[str]
    tissue: list[int]
    biomarker: list[int]


@dataclass(frozen=True)
class _Pending:
    """A batch whose parts are being decoded."""

    step: int
    images: Pixels
    parts: list[Future[Labels]]


class Feeder:
    """Iterates over the batches of `steps`, drawn from `shelf`; `prefetch` of them are on their way.

    `close` may be called at any time and from any thread.
    """

    def __init__(
        self, plan: Plan, shelf: Shelf, recipe: Recipe, *, steps: range, threads: int, prefetch: int
    ) -> None:
        self._plan, self._shelf, self._recipe, self._steps, self._threads = (
            plan,
            shelf,
            recipe,
            steps,
            threads,
        )
        self._free = threading.Semaphore(prefetch)
        self._ready: queue.SimpleQueue[_Pending | BaseException | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="his2lip-decode")
        self._thread = threading.Thread(target=self._feed, name="his2lip-feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None and not self._closed.is_set():
            if isinstance(item, BaseException):
                raise item
            batch = _finish(item)
            self._free.release()
            yield batch

    def close(self) -> None:
        """Stops the feeder, its reads and its decoding, and waits until they have stopped."""
        self._closed.set()
        self._free.release()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ready.put(None)

    def _feed(self) -> None:
        try:
            for step in self._steps:
                self._free.acquire()
                if self._closed.is_set():
                    return
                self._ready.put(self._start(step))
                self._shelf.fill()
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
        finally:
            self._shelf.close()

    def _start(self, step: int) -> _Pending:
        """Hands the rows of one step to the decoding threads, in a few parts."""
        epoch = self._plan.epoch_of(step)
        picks = self._shelf.pick(step)
        if step % self._plan.steps_per_epoch == 0 and step + self._plan.steps_per_epoch < self._steps.stop:
            self._pool.submit(self._plan.epoch, epoch + 1)  # shuffled before it is needed
        size = self._recipe.size
        images = np.empty((len(picks), size, size, 3), dtype=np.uint8)
        length = max(4, -(-len(picks) // (2 * self._threads)))
        parts = [
            self._pool.submit(_fill, picks[at : at + length], images[at : at + length], self._recipe, epoch)
            for at in range(0, len(picks), length)
        ]
        return _Pending(step, images, parts)


def _fill(picks: list[Pick], images: Pixels, recipe: Recipe, epoch: int) -> Labels:
    """Decodes some rows of a batch into their slots, and draws their captions."""
    labels = Labels([], [], [], [])
    for (rows, row, copy), out in zip(picks, images, strict=True):
        patch_id, tissue, biomarker = rows.patch_ids[row], rows.tissues[row], rows.biomarkers[row]
        key = patch_id if copy == 0 else f"{patch_id}\n{copy}"
        change = recipe.augment.draw(recipe.seed, epoch, key)
        try:
            decode_into(rows.image(row), out, change=change, interpolation=recipe.interpolation)
        except ImageError as error:
            where = f"{patch_id} in {rows.where}"
            raise DatasetError(error.what, where=where, mend="prepare the dataset again") from None
        labels.captions.append(recipe.draw(recipe.seed, epoch, key, tissue, biomarker))
        labels.patch_ids.append(patch_id)
        labels.tissue.append(tissue_id(tissue))
        labels.biomarker.append(biomarker_id(biomarker))
    return labels


def _finish(pending: _Pending) -> Batch:
    """Waits for the parts of a batch. The images are HWC in memory, seen as CHW: torch's channels_last."""
    parts = [part.result() for part in pending.parts]
    return Batch(
        images=torch.from_numpy(pending.images).permute(0, 3, 1, 2),
        captions=[caption for part in parts for caption in part.captions],
        tissue=torch.tensor([number for part in parts for number in part.tissue]),
        biomarker=torch.tensor([number for part in parts for number in part.biomarker]),
        patch_ids=[patch_id for part in parts for patch_id in part.patch_ids],
        step=pending.step,
    )
