"""Helpers: Ray actors on free cores and GPUs that embed parts of a dataset beside the task of a model.

The task of a model splits the rows that it must embed into parts. It embeds parts itself, and gives others to
helpers that have loaded the same model; whoever is free takes the next part. Actors are used rather than
`map_batches` of Ray Data, because the images of one protocol are often few: a helper starts only where the
work that is left pays for it, keeps its model from one dataset to the next, and the task never waits for one
that does not start.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import DatasetError, ModelError
from his2lip.evaluation.embeddings import encode_rows
from his2lip.evaluation.encoders import ImageEncoder, ModelEncoder
from his2lip.resources import code_version
from his2lip.runtime import check_code

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

_log = logging.getLogger(__name__)

Part = list[int]  # ascending rows of a split

_PART_BATCHES = 8  # most batches of a part, which is what the loss of a helper repeats
_SHARES = 2  # a part is at most this share (1/2) of what is left for each process that could work
_WORTH_S = 6.0  # seconds of work left from which a helper pays; starting one takes 2 to 4 seconds of a core
_LOOK_S = 1.0  # seconds between two looks at the free resources
_MOST_LOST = 3  # helpers lost in a row, without a part done, after which no more are started


@dataclass
class _Hired:
    """A helper: its actor, whether it has loaded its model, and its parts by the reference of the result."""

    actor: Any
    started: Any  # reference that resolves once the model is loaded
    ready: bool = False
    parts: dict[Any, Part] = field(default_factory=dict)


class Helpers:
    """The helpers of one model's task. Leave the context to end their processes.

    `encode` has the signature of `encode_rows` and gives the same features to the bit, in another order.
    """

    def __init__(
        self,
        load: Callable[[], DualEncoder] | None,
        resources: Mapping[str, float],
        most: int | Literal["auto"] = "auto",
    ) -> None:
        """
        load       loads the model in the process of a helper; None for encoders without a model
        resources  of one helper: num_cpus, num_gpus, memory in bytes
        most       helpers to start; "auto": as many as fit what is free, where the work left pays for them
        """
        self._load, self._resources, self._most = load, dict(resources), most
        self._hired: list[_Hired] = []
        self._lost = 0  # in a row
        self._looked = -math.inf

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self._hired:
            self._end(helper)
        self._hired = []

    def start(self) -> int:
        """Starts as many helpers as `most` says, and waits until they have loaded their model; how many."""
        import ray

        assert self._most != "auto", "a number is needed to know how many to wait for"
        self._hire(parts=self._most + 1, seconds=0.0)
        ray.get([helper.started for helper in self._hired])
        for helper in self._hired:
            helper.ready = True
        return len(self._hired)

    def encode(
        self,
        encoder: ImageEncoder,
        shards: ShardSet,
        split: str,
        rows: Sequence[int],
        *,
        batch_size: int = 64,
        threads: int = 2,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(row, features float32 (T, D)) of rows of a split, each once. Raises what `encode_rows` raises.

        The part of a helper that dies is embedded by this process.
        """
        parts = deque(split_rows(rows, batch_size, self._slots()))
        lost: deque[Part] = deque()  # of helpers that died
        options: dict[str, Any] = {"batch_size": batch_size, "threads": threads}
        begun, done = time.monotonic(), 0
        job: _Job | None = None

        def exchange(*, wait: bool) -> Iterator[tuple[int, np.ndarray]]:
            """Starts helpers that pay, gives parts to those that are free, and takes what is done."""
            nonlocal job, done
            seconds = (time.monotonic() - begun) / done * sum(map(len, parts)) if done else 0.0
            self._hire(len(parts), seconds)
            if job is None and parts and self._hired:
                job = _Job(encoder, shards, split, options)
            if job is not None:
                self._give(job, parts)
                for found in self._collect(lost, wait=wait):
                    done += len(found)
                    yield from found

        try:
            while parts or lost or any(helper.parts for helper in self._hired):
                yield from exchange(wait=not parts and not lost)
                own = lost or parts
                if not own:
                    continue
                for number, item in enumerate(encode_rows(encoder, shards, split, own.popleft(), **options)):
                    if number and number % batch_size == 0:  # a helper must not wait for the whole part
                        yield from exchange(wait=False)
                    done += 1
                    yield item
        finally:
            for helper in self._hired:
                if helper.parts:  # the caller stopped, or a part failed: what is queued is not wanted
                    self._end(helper)
            self._hired = [helper for helper in self._hired if not helper.parts]

    def _slots(self) -> int:
        """How many processes of this size the cluster has room for; at least one."""
        import ray

        if not ray.is_initialized():
            return 1
        fits = _fitting(ray.cluster_resources(), self._resources)
        return max(1, fits if self._most == "auto" else self._most + 1)

    def _hire(self, parts: int, seconds: float) -> None:
        """Starts helpers where `parts` are left, which would take this process `seconds`."""
        import ray

        now = time.monotonic()
        room = parts - 1 - len(self._hired)  # one part is for this process
        if room < 1 or self._lost >= _MOST_LOST or not ray.is_initialized():
            return
        if self._most == "auto":
            if seconds / (1 + len(self._hired)) < _WORTH_S or now - self._looked < _LOOK_S:
                return
            self._looked = now
            starting = sum(not helper.ready for helper in self._hired)  # may still count as free
            room = min(room, _fitting(ray.available_resources(), self._resources) - starting)
        else:
            room = min(room, self._most - len(self._hired))
        if room < 1:
            return
        _log.info("%d helpers are started, for %.0f s of work", room, seconds)
        actor = ray.remote(_Helper)
        for _ in range(room):
            one: Any = actor.options(**self._resources, max_restarts=0).remote(self._load, code_version())
            self._hired.append(_Hired(one, one.ready.remote()))

    def _give(self, job: _Job, parts: deque[Part]) -> None:
        """Gives each helper that has loaded its model a part, and a second one while there are many."""
        for most in (1, 2):
            for helper in self._hired:
                many = most == 1 or len(parts) > len(self._hired)
                if helper.ready and len(helper.parts) < most and many and parts:
                    part = parts.popleft()
                    reference = helper.actor.embed.remote(*job.arguments, np.array(part), job.options)
                    helper.parts[reference] = part

    def _collect(self, lost: deque[Part], *, wait: bool) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Features of the parts that are done; with `wait`, waits for the first. Adds to `lost`."""
        import ray

        of = {reference: helper for helper in self._hired for reference in helper.parts}
        if not wait:
            of |= {helper.started: helper for helper in self._hired if not helper.ready}
        if not of:
            return
        done = ray.wait(list(of), num_returns=1 if wait else len(of), timeout=None if wait else 0)[0]
        for reference in done:
            helper = of[reference]
            if helper not in self._hired:  # died with an earlier reference of this list
                continue
            try:
                found = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # what `encode_rows` would have raised here
                raise error.cause from None
            except ray.exceptions.RayError as error:
                self._drop(helper, lost, error)
            else:
                if reference == helper.started:
                    helper.ready = True
                    continue
                del helper.parts[reference]
                self._lost = 0
                rows, lengths, features = found
                yield list(zip(rows.tolist(), np.split(features, np.cumsum(lengths)[:-1]), strict=True))

    def _drop(self, helper: _Hired, lost: deque[Part], error: Exception) -> None:
        """Takes a helper off whose process or node has died; its parts come back."""
        lost.extend(helper.parts.values())
        self._hired.remove(helper)
        self._lost += 1
        what = type(error).__name__
        _log.warning("a helper is lost (%s); its %d parts are embedded again", what, len(helper.parts))
        self._end(helper)

    @staticmethod
    def _end(helper: _Hired) -> None:
        import ray

        ray.kill(helper.actor)


class _Job:
    """What all parts of one call share; the encoder is sent to the object store once, without its weights."""

    def __init__(self, encoder: ImageEncoder, shards: ShardSet, split: str, options: dict[str, Any]) -> None:
        import ray

        self.arguments = (ray.put(encoder), encoder.key, shards.uri, shards.digest, split)
        self.options = options


class _Helper:
    """The process of a helper, which loads the model once."""

    def __init__(self, load: Callable[[], DualEncoder] | None, code: str) -> None:
        check_code(code)
        self._model = None if load is None else load()
        self._weights = None if self._model is None else self._model.tensor_digest()
        self._shards: ShardSet | None = None  # of the last part; opening them reads the footers of all files

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def embed(
        self,
        encoder: ImageEncoder,
        key: str,
        uri: str,
        digest: str,
        split: str,
        rows: np.ndarray,
        options: dict[str, Any],
    ) -> tuple[np.ndarray, list[int], np.ndarray]:
        """Rows int64 (R,), how many features each has, and these features float32 (sum, D).

        Raises DatasetError and ModelError where this machine has other shards or another model than the task.
        """
        shards = self._shards
        if shards is None or (shards.uri, shards.digest) != (uri, digest):
            shards = self._shards = open_shards(uri)
        if shards.digest != digest:
            what = "this machine has other shards here than the one that started the benchmark"
            raise DatasetError(what, where=uri, fix="use a folder or URI that both see")
        if isinstance(encoder, ModelEncoder):
            assert self._model is not None, "the helpers of a model load it"
            encoder.bind(self._model, self._weights)
        if encoder.key != key:
            what = "this machine has another model here, or other libraries, than the one of the task"
            raise ModelError(what, where=uri, fix="use a folder that both see, and equal installations")
        found = list(encode_rows(encoder, shards, split, rows.tolist(), **options))
        lengths = [len(features) for _, features in found]
        return np.array([row for row, _ in found]), lengths, np.concatenate([f for _, f in found])


def split_rows(rows: Sequence[int], batch_size: int, slots: int) -> list[Part]:
    """Contiguous parts of whole batches, so that the batches are those of a single process.

    Each part is a share of the rows that are left, down to one batch, so that `slots` processes end at nearly
    the same time (guided self-scheduling; Polychronopoulos and Kuck, IEEE Transactions on Computers 1987).
    """
    parts, begin = [], 0
    while begin < len(rows):
        batches = math.ceil((len(rows) - begin) / batch_size)
        size = batch_size * min(_PART_BATCHES, max(1, batches // (_SHARES * slots)))
        parts.append(list(rows[begin : begin + size]))
        begin += size
    return parts


def _fitting(have: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many processes of `each` fit into the resources that are there."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    wanted = {names.get(name, name): amount for name, amount in each.items() if amount > 0}
    return min((int(have.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items()), default=0)
