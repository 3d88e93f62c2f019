"""Acceptance sampling of rewordings: a random part of a batch is read, and the batch passes or fails.

The plan of a batch is fixed by the first decision about one of its lines. It is single sampling by attributes
of a finite batch, with the exact hypergeometric distribution (Schilling and Neubauer 2017, Acceptance
Sampling in Quality Control, 3rd ed.). A batch whose error rate is above the stated one passes with a
probability of at most 1 - confidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from his2lip.captioning.records import Acceptance, Status
from his2lip.captioning.state import Item, State, rank

Verdict = Literal["open", "passed", "failed"]
_GOOD: tuple[Status, ...] = ("accepted",)  # every other verdict of a reader is an error of the rewording


@dataclass(frozen=True)
class Batch:
    """A batch of rewordings under its plan.

    size     N, rewordings that passed validation, of an approved text or decided before that changed
    sample   ids of those to read, in a random order that depends on the project's seed only
    allowed  errors among them at which the batch passes
    read     how many of the sample have a verdict
    errors   how many of these are wrong: revised, rejected, of a wrong label, disputed, or `cannot tell`
    """

    name: str
    size: int
    sample: tuple[str, ...]
    allowed: int
    read: int
    errors: int
    acceptance: Acceptance

    @property
    def verdict(self) -> Verdict:
        if self.errors > self.allowed:
            return "failed"
        return "passed" if self.read == len(self.sample) else "open"

    @property
    def limit(self) -> float | None:
        """Upper limit of the share of wrong lines in the batch at its confidence; None before all is read."""
        if self.read < len(self.sample) or not self.size:
            return None
        most = upper_limit(self.size, self.read, self.errors, confidence=self.acceptance.confidence)
        return most / self.size

    def __str__(self) -> str:
        told = f"batch {self.name}: {self.verdict}; {self.read} of {len(self.sample)} sampled lines read"
        told += f", {self.errors} wrong; {self.size:,} lines in all"
        if self.limit is None:
            return told
        return f"{told}; at most {100 * self.limit:.1f} % wrong ({self.acceptance.confidence:.0%} confidence)"


def batches(state: State, seed: int, acceptance: Acceptance) -> list[Batch]:
    """All batches that have a rewording of an approved text or a line that was decided, by name.

    A batch of which a line was decided keeps the plan that was stored then; the others have `acceptance`.
    A line that was decided counts also after its seed changed: a change must not remove an error.
    """
    members: dict[str, list[Item]] = {}
    sizes: Counter[str] = Counter()
    for item in state.variants:
        if item.batch is None:
            continue
        sizes[item.batch] += 1
        if state.is_current(item) or item.status != "open":
            members.setdefault(item.batch, []).append(item)
    return [
        _batch(name, members[name], sizes[name], seed, state.plans.get(name, acceptance))
        for name in sorted(members)
    ]


def _batch(name: str, items: Sequence[Item], drawn: int, seed: int, acceptance: Acceptance) -> Batch:
    """The batch of these items, of `drawn` that passed validation.

    The part that is read is not smaller than that of all `drawn` lines, so that no line leaves it when lines
    of changed seeds leave the batch.
    """
    count, allowed = plan(len(items), acceptance)
    if drawn > len(items):
        count = min(max(count, plan(drawn, acceptance)[0]), len(items))
    ordered = sorted(items, key=lambda item: rank(seed, "sample", name, item.id))
    sample = ordered[:count]
    done = [item for item in sample if item.status != "open"]
    errors = sum(item.status not in _GOOD for item in done)
    ids = tuple(item.id for item in sample)
    return Batch(name, len(items), ids, allowed, len(done), errors, acceptance)


def plan(size: int, acceptance: Acceptance) -> tuple[int, int]:
    """How many of a batch of `size` to read, and the errors among them at which it passes.

    The smallest number n for which a batch with one error more than the stated rate has at most `allowed`
    errors among n with a probability of at most 1 - confidence.
    """
    from scipy.stats import hypergeom

    if size == 0:
        return 0, 0
    wrong = min(int(acceptance.error_rate * size) + 1, size)
    allowed = min(acceptance.allowed, wrong - 1)
    low, high = allowed + 1, size  # at `size` all errors are found
    while low < high:
        middle = (low + high) // 2
        if hypergeom.cdf(allowed, size, wrong, middle) <= 1 - acceptance.confidence:
            high = middle
        else:
            low = middle + 1
    return low, allowed


def upper_limit(size: int, read: int, errors: int, *, confidence: float) -> int:
    """The largest number of errors in a batch of `size` that `errors` among `read` do not rule out.

    One-sided exact limit at `confidence`: the largest D with P(X <= errors | D) > 1 - confidence.
    """
    from scipy.stats import hypergeom

    low, high = errors, size - (read - errors)
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeom.cdf(errors, size, middle, read) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low
