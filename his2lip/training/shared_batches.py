"""Decoded batches that the trials of one machine share: one of them decodes an epoch, the others read it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from his2lip.data.stream import Batch
from his2lip.files import below

_LOOK_S = 0.01  # between two looks for a batch that another process decodes
_PATIENCE_S = 60.0  # without a new batch, after which a process decodes for itself
_FULL = "full"  # a file that exists once no more batches are stored


@dataclass(frozen=True)
class SharedFolder:
    """A folder of decoded batches, and the bytes that each split may have there, in all its folders."""

    path: Path
    limit: int


class SharedBatches:
    """Batches by step, in files of a folder that processes of one machine read and write.

    The batches of a step have to be the same in all processes. Whoever needs the next batch of an epoch first
    decodes that epoch from there on, under a lock that the system releases if it dies; the others read each
    batch as it appears. A process that ends in the middle is followed by the next one. Batches are stored
    until the folder and those of the same split of other data, FOLDER/../../*/SPLIT, have `limit` bytes. Then
    those that no process uses are removed; where that is not enough, each process decodes for itself, as it
    does where the file system has no locks, or the process that decodes makes no progress for a minute.

    decoded, read  number of batches that this process decoded, and of those that it found decoded
    """

    def __init__(
        self,
        decode: Callable[[int, int], Iterable[Batch]],
        folder: Path,
        *,
        epoch: int,
        limit: int,
    ) -> None:
        """
        decode  (start, stop) -> the batches of these steps
        epoch   steps of an epoch, by which the work is shared out
        limit   bytes that the folder may have, together with those of the same split of other data
        """
        self._decode, self._folder, self._epoch, self._limit = decode, folder, epoch, limit
        self.decoded = self.read = 0
        self._alone = False
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # without locks nothing is shared or removed
            use = _in_use(folder).open("w")
            weakref.finalize(self, use.close)  # which releases the lock
            fcntl.flock(use, fcntl.LOCK_SH)
        folder.mkdir(exist_ok=True)

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        for begin in range(start - start % self._epoch, stop, self._epoch):
            yield from self._within(max(start, begin), min(stop, begin + self._epoch))

    def _within(self, step: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [step, stop) of one epoch."""
        waited = time.monotonic()
        while step < stop:
            batch = self._stored(step)
            if batch is not None:
                self.read += 1
                yield batch
                step, waited = step + 1, time.monotonic()
                continue
            late = time.monotonic() - waited > _PATIENCE_S
            if self._alone or late or (self._folder / _FULL).exists():
                yield from self._decoded(step, stop)
                return
            with self._lock(step // self._epoch) as release:
                # Another look: the batch may have been stored before the lock was free.
                if release is not None and self._stored(step) is None:
                    yield from self._decoded(step, stop, release=release)
                    return
            if release is None:
                time.sleep(_LOOK_S)

    def _decoded(self, step: int, stop: int, *, release: Callable[[], None] | None = None) -> Iterator[Batch]:
        """Decodes the steps; stores them with the lock, which is released before the last one is used."""
        for batch in self._decode(step, stop):
            self.decoded += 1
            if release is not None:
                self._store(batch)
                if batch.step + 1 == stop:
                    release()
            yield batch

    def _file(self, step: int) -> Path:
        return self._folder / f"{step}.safetensors"

    def _stored(self, step: int) -> Batch | None:
        """The batch of a step; None where it is not there yet."""
        try:
            with safe_open(self._file(step), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                texts = json.loads(file.metadata()["texts"])
        except (OSError, SafetensorError):
            return None
        images = tensors.pop("images").permute(0, 3, 1, 2)  # as the decoder has them: HWC in memory
        return Batch(images=images, step=step, **tensors, **texts)

    def _store(self, batch: Batch) -> None:
        """Stores a batch, or stops sharing where there is no room for it."""
        if self._alone:
            return
        tensors = {
            "images": batch.images.permute(0, 2, 3, 1).contiguous(),
            "tissue": batch.tissue,
            "biomarker": batch.biomarker,
            "finding": batch.finding,
        }
        texts = {"captions": batch.captions, "patch_ids": batch.patch_ids}
        content = save(tensors, metadata={"texts": json.dumps(texts)})
        room = self._limit - len(content)
        if self._stored_bytes() > room:
            self._remove_unused()
            if self._stored_bytes() > room:
                self._stop_sharing()
                return
        new = self._folder / f".{batch.step}.{os.getpid()}"
        try:
            new.write_bytes(content)
            new.replace(self._file(batch.step))
        except OSError:  # a full disk; trials then decode for themselves
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            self._stop_sharing()

    def _stored_bytes(self) -> int:
        """Of this split, in the folders of all data."""
        of_split = f"{self._folder.name}/*.safetensors"
        found = below(self._folder.parent.parent)
        return sum(stat.st_size for path, stat in found if path.match(of_split))

    def _remove_unused(self) -> None:
        """Removes the folders of this split of other data that no process has open."""
        for folder in self._folder.parent.parent.glob(f"*/{self._folder.name}"):
            if folder == self._folder:
                continue
            with contextlib.suppress(OSError), _in_use(folder).open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)

    @contextlib.contextmanager
    def _lock(self, epoch: int) -> Iterator[Callable[[], None] | None]:
        """What releases the lock of an epoch, or None where another process has it or there are no locks."""
        with contextlib.ExitStack() as stack:
            release: Callable[[], None] | None = None
            try:
                handle = stack.enter_context((self._folder / f".lock-{epoch}").open("w"))
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                release = partial(fcntl.flock, handle, fcntl.LOCK_UN)
            except BlockingIOError:
                pass
            except OSError:  # a full disk, or a file system without locks
                self._stop_sharing()
            yield release

    def _stop_sharing(self) -> None:
        """Ends the storing of batches here and, where the disk takes the file, in the other processes."""
        self._alone = True
        with contextlib.suppress(OSError):
            (self._folder / _FULL).touch()


def _in_use(folder: Path) -> Path:
    """The file that is locked by each process that uses a folder; it lies beside it, and stays."""
    return folder.with_name(f"{folder.name}.in-use")
