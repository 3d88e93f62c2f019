"""Agreement of a reviewer with himself or herself (blind repeats) and of two reviewers: Cohen's kappa."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from his2lip.captioning.records import Decision
from his2lip.captioning.state import Item, State, rank

REPEATED = 10  # one in ten decided items is shown again
_APART = 5  # decisions between an item and its repeat, at least
_LEAST = 5  # items from which an interval is computed

_Verdicts = tuple[str, str, str]  # an item and two verdicts about it


@dataclass(frozen=True)
class Agreement:
    """How often two verdicts on the same items agree.

    n             items with both verdicts
    agreeing      items on which they agree
    kappa         Cohen's kappa (Cohen 1960); None where all verdicts are the same, or there is none
    lo, hi        limits of its 95 % interval, from the jackknife over items; None from fewer than 5 items
    disagreeing   the item and the two verdicts, where they differ
    """

    names: tuple[str, str]
    n: int
    agreeing: int
    kappa: float | None
    lo: float | None
    hi: float | None
    disagreeing: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        told = f"{' and '.join(self.names)} agree on {self.agreeing} of {self.n} items"
        if self.n == 0:
            return f"{' and '.join(self.names)} have no item in common"
        if self.kappa is None:
            return f"{told}; Cohen's kappa is not defined, because all verdicts are the same"
        if self.lo is None or self.hi is None:
            return f"{told}, Cohen's kappa {self.kappa:.2f} (too few or too equal for an interval)"
        return f"{told}, Cohen's kappa {self.kappa:.2f} (95 % interval {self.lo:.2f} to {self.hi:.2f})"


def with_oneself(state: State, reviewer: str) -> Agreement:
    """The agreement of a reviewer's blind repeats with the verdicts that stood when they were made."""
    pairs = [
        (item, verdict_of(first, state.items[item]), verdict_of(again, state.items[item]))
        for item, (first, again) in state.repeated_verdicts(reviewer).items()
        if item in state.items
    ]
    return _agreement((reviewer, f"{reviewer} again"), pairs)


def between(state: State, one: str, other: str) -> Agreement:
    """The agreement of two reviewers on the items that both decided.

    A decision that settled a dispute does not count, but the one before it. The verdicts are independent only
    where neither saw the other's, as in two copies of a project that are merged later.
    """
    first, second = state.own_verdicts(one), state.own_verdicts(other)
    pairs = [
        (item, verdict_of(first[item], state.items[item]), verdict_of(second[item], state.items[item]))
        for item in state.items
        if item in first and item in second
    ]
    return _agreement((one, other), pairs)


def verdict_of(decision: Decision, item: Item) -> str:
    """accepted, revised, reject, cannot tell or wrong label, by the text that the decision leaves."""
    if decision.after is None:
        return decision.act
    return "accepted" if decision.after == item.original else "revised"


def due_repeat(state: State, reviewer: str, seed: int) -> str | None:
    """The item that comes back blind now; None where none is due. A pure function of the log."""
    own = sorted(state.verdicts(reviewer).values(), key=lambda decision: decision.sequence)
    repeated = state.verdicts(reviewer, blind=True)
    if len(repeated) >= len(own) // REPEATED:
        return None
    waiting = [d.item for d in own[:-_APART] if d.item not in repeated and d.item in state.items]
    return min(waiting, key=lambda item: rank(seed, "repeat", reviewer, item), default=None)


def _agreement(names: tuple[str, str], pairs: Sequence[_Verdicts]) -> Agreement:
    differing = tuple(pair for pair in pairs if pair[1] != pair[2])
    kappa = _kappa(pairs)
    lo = hi = None
    if kappa is not None and len(pairs) >= _LEAST:
        lo, hi = _interval(kappa, pairs)
    return Agreement(names, len(pairs), len(pairs) - len(differing), kappa, lo, hi, differing)


def _kappa(pairs: Sequence[_Verdicts]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    if not pairs or len({verdict for _, *both in pairs for verdict in both}) < 2:
        return None
    return float(cohen_kappa_score([one for _, one, _ in pairs], [other for *_, other in pairs]))


def _interval(kappa: float, pairs: Sequence[_Verdicts]) -> tuple[float | None, float | None]:
    """Student's interval from the jackknife, within [-1, 1]; None where it has no width."""
    from scipy.special import stdtrit

    kinds = Counter((one, other) for _, one, other in pairs)
    n, without = len(pairs), {}
    for kind in kinds:
        left = list(pairs)
        left.remove(next(pair for pair in pairs if pair[1:] == kind))
        without[kind] = _kappa(left)
    if any(value is None for value in without.values()):
        return None, None
    mean = sum(count * (without[kind] or 0.0) for kind, count in kinds.items()) / n
    squares = sum(count * ((without[kind] or 0.0) - mean) ** 2 for kind, count in kinds.items())
    error = math.sqrt((n - 1) / n * squares)
    if error == 0:
        return None, None
    half = float(stdtrit(n - 1, 0.975)) * error
    return max(kappa - half, -1.0), min(kappa + half, 1.0)
