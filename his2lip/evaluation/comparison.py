"""Differences between models on the same units: all pairs at once, by sign flips over clusters.

Under the hypothesis that two models are equally good, the contribution of each cluster to their difference
could as well have the other sign. A cluster contributes by its units (`Metric.contributions`), so that one
with most of the units counts once, and not as if all others agreed with it. The largest studentised
difference of all pairs under random signs tells how large one must be (max-T; Westfall and Young 1993). So
the probability that any pair of equal models is told apart is at most 5 %, and a model that is picked as the
best on the same data is not favoured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
from scipy.special import stdtrit

from his2lip.evaluation.statistics import LEVEL, standard_error

FLIPS = 2048  # sign vectors; all of them where there are not more
POWER = 0.8  # probability with which a difference of the detectable size is seen
_SAME = 1e-12  # differences and errors below it are rounding


@dataclass(frozen=True)
class Differences:
    """All pairs of M models.

    values    float64 (M,), the figure of each model
    errors    float64 (M, M), standard errors of the differences
    lower     float64 (M, M), the lower limit of the figure of model i minus that of model j, at 95 % for all
              pairs together; the upper one is that of j minus i with the other sign. -infinite for too few
              clusters
    clusters  number of clusters
    """

    values: np.ndarray
    errors: np.ndarray
    lower: np.ndarray
    clusters: int

    @property
    def distinguishable(self) -> np.ndarray:
        """bool (M, M): the pairs whose interval does not hold 0."""
        return (self.lower > _SAME) | (self.lower.T > _SAME)

    @property
    def has_limits(self) -> bool:
        """Whether there are enough clusters to tell any models apart."""
        return bool(np.isfinite(self.lower).all())

    def top_group(self, among: np.ndarray | None = None) -> np.ndarray:
        """bool (M,): the best model and those that cannot be told from it.

        among  bool (M,): the models that may be in it; None: all
        """
        among = np.ones(len(self.values), dtype=bool) if among is None else among
        best = int(np.where(among, self.values, -np.inf).argmax())
        return ~self.distinguishable[best] & among

    def groups(self, among: np.ndarray | None = None) -> list[str]:
        """(M,) letters: two models share one exactly where they cannot be told apart; a is the best's.

        This is the compact letter display by insertion and absorption (Piepho 2004).

        among  bool (M,): the models that have letters; None: all
        """
        chosen = np.ones(len(self.values), dtype=bool) if among is None else among
        groups = [frozenset(np.flatnonzero(chosen).tolist())]
        pairs = np.argwhere(np.triu(self.distinguishable & np.outer(chosen, chosen), 1))
        for i, j in pairs.tolist():
            parts = {g - {k} for g in groups if i in g and j in g for k in (i, j)}
            new = frozenset(parts)
            parts |= {g for g in groups if i not in g or j not in g}
            # The groups that stay hold no other one, and none of the new ones holds them.
            groups = [g for g in parts if g not in new or not any(g < other for other in parts)]
        groups.sort(key=lambda g: sorted(-self.values[i] for i in g))
        return ["".join(_letter(n) for n, g in enumerate(groups) if i in g) for i in range(len(self.values))]

    def interval(self, i: int, j: int) -> tuple[float, float] | None:
        """Limits of the figure of model i minus that of model j, at 95 % for all pairs together.

        None for too few clusters, and where all clusters agree, so that an interval would have no width.
        """
        if not self.has_limits or self.errors[i, j] <= _SAME:
            return None
        return float(self.lower[i, j]), float(-self.lower[j, i])

    def detectable(self, among: np.ndarray | None = None) -> float | None:
        """The smallest difference that is seen with a probability of 80 %, for the median pair.

        among  bool (M,): the models whose pairs count; None: all
        """
        chosen = np.ones(len(self.values), dtype=bool) if among is None else among
        pairs = np.nonzero(np.triu(np.outer(chosen, chosen), 1))
        errors, reach = self.errors[pairs], -(self.lower + self.lower.T)[pairs] / 2
        varies = errors > _SAME
        if not self.has_limits or not varies.any():
            return None
        return float(np.median((reach + stdtrit(self.clusters - 1, POWER) * errors)[varies]))


def _letter(number: int) -> str:
    """a to z, then a1 to z1, and so on."""
    again, place = divmod(number, len(ascii_lowercase))
    return ascii_lowercase[place] + (str(again) if again else "")


def compare(
    values: np.ndarray,
    replicates: np.ndarray,
    contributions: np.ndarray,
    shares: np.ndarray,
    *,
    seed: int = 0,
) -> Differences:
    """The differences of M models.

    values         float64 (M,), the figure of each model
    replicates     float64 (M, G), the same without one cluster each (`Metric.replicates`)
    contributions  float64 (M, G), what each cluster adds to the figure (`Metric.contributions`)
    shares         float64 (G,), the share of each cluster in a difference that is the same everywhere
    """
    errors = np.zeros((len(values), len(values)))
    for i, own in enumerate(replicates):
        errors[i, i + 1 :] = errors[i + 1 :, i] = standard_error(replicates[i + 1 :] - own)
    lower = _lower_limits(values, contributions, shares, _limit(contributions, seed))
    return Differences(values, errors, lower, replicates.shape[1])


def _lower_limits(
    values: np.ndarray, contributions: np.ndarray, shares: np.ndarray, limit: float
) -> np.ndarray:
    """`Differences.lower`: the least difference that the test with this limit does not reject.

    Under a true difference d, cluster g contributes d shares[g] less, and the square of the sum of what is
    left may be at most `limit` times the sum of its squares. The values of d where it is are those between
    the roots of a quadratic equation.
    """
    lower = np.full((len(values), len(values)), -np.inf)
    room = 1 - limit * float(shares @ shares) if np.isfinite(limit) else 0.0
    if room < 1e-9:
        return lower
    own = contributions - values[:, None] * shares
    for i, value in enumerate(values):
        away = own[i] - own
        cross, size = limit * (away @ shares), limit * (away**2).sum(axis=1)
        lower[i] = value - values - (cross + np.sqrt(cross**2 + room * size)) / room
    return lower


def _limit(contributions: np.ndarray, seed: int) -> float:
    """The quantile of the largest (sum)^2 / sum of squares of all pairs under sign flips of the clusters.

    It orders as |t| does. Infinite for too few clusters.
    """
    # Of each model: the lengths of its differences from the models after it, (M - i - 1,).
    apart = (contributions[i + 1 :] - own for i, own in enumerate(contributions[:-1]))
    norms = [np.sqrt(np.vecdot(rows, rows)) for rows in apart]
    signs = sign_vectors(contributions.shape[1], seed)
    largest = np.sort(np.concatenate([_largest(contributions @ block.T, norms) for block in signs]))
    allowed = int((1 - LEVEL) * len(largest) + 1e-9)  # flips that may be as large as the data's own
    differ = any((norm > _SAME).any() for norm in norms)
    return float(largest[-allowed - 1]) ** 2 if differ and allowed else np.inf


def _largest(sums: np.ndarray, norms: Sequence[np.ndarray]) -> np.ndarray:
    """float64 (B,): the largest |sum| / norm of all pairs of models under each flip, from sums (M, B)."""
    largest = np.zeros(sums.shape[1])
    for i, norm in enumerate(norms):
        differ = norm > _SAME
        if differ.any():
            away = sums[i + 1 :][differ]
            away -= sums[i]
            np.abs(away, out=away)
            away /= norm[differ, None]
            np.maximum(largest, away.max(axis=0), out=largest)
    return largest


def sign_vectors(groups: int, seed: int) -> Iterator[np.ndarray]:
    """Vectors of +1 and -1, float64 (B, G), in blocks; the first of all is that of the data, without a flip.

    The sign of one cluster is fixed, since the other half of the vectors gives the same |t|.
    """
    if 2 ** (groups - 1) <= FLIPS:
        bits = np.arange(2 ** (groups - 1))[:, None] >> np.arange(groups)
        yield 1.0 - 2.0 * (bits & 1)
        return
    rng = np.random.default_rng(seed)
    yield np.ones((1, groups))
    block = max(1, 2**22 // groups)
    for start in range(1, FLIPS, block):
        yield 1.0 - 2.0 * rng.integers(2, size=(min(block, FLIPS - start), groups))
