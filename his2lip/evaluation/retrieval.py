"""Ranking of a gallery by similarity to queries: first relevant rank, average precision, recall, chance.

Every query is compared with the whole gallery in float64, in blocks, so that memory is bounded. Benchmarks
(`rank`) and searches (`nearest`) have the same order: similarities that differ by rounding only are ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

NO_CLASS = -1  # class of an item that is relevant to no query, and of a query that is not scored
NEVER = -1  # cluster of an item that no interval leaves out
RECALL_AT = (1, 5, 10)
_BLOCK = 2**22  # similarities that are in memory at once
_STEPS = 2.0**40  # similarities are rounded to 1/_STEPS of the largest one, so that equal items tie


@dataclass(frozen=True)
class Items:
    """N queries, or the N items of a gallery.

    features  float (N, D); their scalar products are the similarities
    classes   int64 (N,); a query and an item of one class are relevant to each other
    selves    int64 (N,); a query never retrieves an item with its own number, such as the same picture
    clusters  int64 (N,), from 0 to G-1: what an interval leaves out together; or NEVER
    """

    features: np.ndarray
    classes: np.ndarray
    selves: np.ndarray
    clusters: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Ranks:
    """How Q queries ranked a gallery; queries without a relevant item are left out of figures.

    first      int64 (..., Q), the rank of the first relevant item, from 1; 0 where there is none
    precision  float64 (..., Q), the average precision; NaN where no item is relevant
    relevant   int64 (..., Q), the number of relevant items
    gallery    int64 (..., Q), the number of items that were ranked, without the query itself
    """

    first: np.ndarray
    precision: np.ndarray
    relevant: np.ndarray
    gallery: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """bool (..., Q): the queries that have a relevant item."""
        return self.relevant > 0

    def figures(self) -> dict[str, np.ndarray]:
        """Name -> figure, each (...): recall_at_1, _5 and _10, mean_average_precision, median_rank.

        Recall at k is the share of the queries that have a relevant item among the first k (Faghri et al.
        2018, VSE++). NaN where no query is scored.
        """
        scored = self.scored
        n = np.where(scored.any(axis=-1), scored.sum(axis=-1), np.nan)
        found = {f"recall_at_{k}": (scored & (self.first <= k)).sum(axis=-1) / n for k in RECALL_AT}
        found["mean_average_precision"] = np.where(scored, self.precision, 0).sum(axis=-1) / n
        found["median_rank"] = _median(self.first, scored)
        return found


def rank(
    queries: Items, gallery: Items, *, device: str = "cpu", groups: int = 0, block: int = _BLOCK
) -> tuple[Ranks, Ranks]:
    """Ranks of Q queries in a gallery of M items, whole (Q,), and without each of G clusters (G, Q).

    Equal similarities are in the order of the gallery, so order it by nothing that is related to the classes.
    Without a cluster, its queries are not scored and its items not ranked.

    device  in the words of torch; where its sums are rounded otherwise, only similarities can change places
            that differ by 1e-12 of the largest possible one
    groups  G; 0: nothing is left out
    block   similarities in memory at once
    """
    import torch

    shape = (1 + groups, len(queries))
    first, precision = np.zeros(shape, dtype=np.int64), np.full(shape, np.nan)
    relevant, ranked = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    if len(queries) and len(gallery):
        q, g = _scaled(queries.features, device), _scaled(gallery.features, device)
        selves, clusters = (torch.as_tensor(a, device=device) for a in (gallery.selves, gallery.clusters))
        members = [torch.nonzero(clusters == c)[:, 0] for c in range(groups)]
        for rows, own in _blocks(queries.classes, gallery.classes, most=max(1, block // len(gallery))):
            asked = torch.as_tensor(rows, device=device)
            mine = torch.as_tensor(queries.selves[rows], device=device)[:, None] == selves
            places = _places(q[asked] @ g.T, mine)
            found = _Relevant(places, torch.as_tensor(own, device=device), mine, clusters)
            results = [found.ranks(), *(found.without(c, places[:, members[c]]) for c in range(groups))]
            own_first, own_precision, own_relevant, own_ranked = (
                torch.stack(parts).cpu().numpy() for parts in zip(*results, strict=True)
            )
            gone = np.zeros((1 + groups, len(rows)), dtype=bool)
            gone[1:] = queries.clusters[rows] == np.arange(groups)[:, None]
            first[:, rows] = np.where(gone, 0, own_first)
            precision[:, rows] = np.where(gone, np.nan, own_precision)
            relevant[:, rows] = np.where(gone, 0, own_relevant)
            ranked[:, rows] = own_ranked
    return Ranks(first[0], precision[0], relevant[0], ranked[0]), Ranks(
        first[1:], precision[1:], relevant[1:], ranked[1:]
    )


def nearest(
    query: np.ndarray, gallery: np.ndarray, wanted: np.ndarray, *, top: int, block: int = _BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The items of a gallery that are most similar to one query, in the order of `rank`, with similarities.

    query   float (D,); its scalar products with `gallery`, float (M, D), are the similarities
    wanted  bool (M,), the items that may be found
    top     K; fewer where fewer are wanted
    block   numbers of the gallery that are in memory in float64 at once
    Returns int64 (K,) and float64 (K,).
    """
    import torch

    asked = torch.as_tensor(query).double()
    similarity = torch.empty(len(gallery), dtype=torch.float64)
    longest, step = torch.zeros((), dtype=torch.float64), max(1, block // max(1, len(query)))
    for start in range(0, len(gallery), step):
        rows = torch.as_tensor(gallery[start : start + step]).double()
        similarity[start : start + step] = rows @ asked
        longest = torch.maximum(longest, rows.norm(dim=1).max())
    scale = (longest * asked.norm()).clamp(min=torch.finfo(torch.float64).tiny)
    places = _places((similarity / scale)[None], torch.as_tensor(~wanted)[None])[0]
    best = places.argsort()[: min(top, int(wanted.sum()))]
    return best.numpy(), similarity[best].numpy()


def chance(ranks: Ranks) -> dict[str, float]:
    """The figures that random orders of the same galleries have on average; the median over them.

    ranks  (Q,), of which only the numbers of items are used
    """
    scored = ranks.scored
    sizes, counts = np.unique(
        np.stack([ranks.gallery[scored], ranks.relevant[scored]]), axis=1, return_counts=True
    )
    share = counts / max(counts.sum(), 1)
    if not len(share):
        return {name: float("nan") for name in ranks.figures()}
    # P(the first k items have none that is relevant), for k up to the largest gallery
    none = np.stack([_none_relevant(int(m), int(r), int(sizes[0].max())) for m, r in sizes.T])
    found = 1 - share @ none
    precision = [_expected_precision(int(m), int(r)) for m, r in sizes.T]
    return {
        **{f"recall_at_{k}": float(found[min(k, len(found) - 1)]) for k in RECALL_AT},
        "mean_average_precision": float(share @ np.array(precision)),
        "median_rank": float(np.argmax(found >= 0.5)),
    }


class _Relevant:
    """The places of the relevant items of a block of B queries, which all have one class."""

    def __init__(
        self, places: torch.Tensor, own: torch.Tensor, mine: torch.Tensor, clusters: torch.Tensor
    ) -> None:
        """
        places    int64 (B, M), the rank of each item from 1; items that are the query itself come last
        own       int64 (R,), the items of the queries' class
        mine      bool (B, M), the items that are the query itself
        clusters  int64 (M,), of the items
        """
        import torch

        self._ranked = places.shape[1] - mine.sum(dim=1)
        self._places, order = places[:, own].sort(dim=1)
        self._valid = self._places <= self._ranked[:, None]
        self._clusters = clusters[own][order]
        self._numbers = torch.arange(1, len(own) + 1, device=places.device, dtype=torch.float64)

    def ranks(self) -> tuple[torch.Tensor, ...]:
        """Of each query (B,): first rank, average precision, number relevant, number ranked."""
        return _ranks(self._places, self._valid, self._ranked)

    def without(self, cluster: int, members: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same without a cluster, whose items have the places `members`, int64 (B, K)."""
        import torch

        if not members.shape[1]:
            return self.ranks()
        away = members.sort(dim=1).values.contiguous()
        before = torch.searchsorted(away, self._places.contiguous(), right=True)
        ranked = self._ranked - (away <= self._ranked[:, None]).sum(dim=1)
        return _ranks(self._places - before, self._valid & (self._clusters != cluster), ranked)


def _ranks(places: torch.Tensor, kept: torch.Tensor, ranked: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """First rank, average precision, number relevant, `ranked`; of ascending places (B, R) where `kept`."""
    import torch

    relevant = kept.sum(dim=1)
    far = torch.iinfo(torch.int64).max
    first = (
        torch.where(kept, places, far).min(dim=1).values if places.shape[1] else torch.zeros_like(relevant)
    )
    hits = kept.cumsum(dim=1).double() / places.clamp(min=1).double()
    precision = torch.where(kept, hits, 0.0).sum(dim=1) / relevant
    return torch.where(relevant > 0, first, 0), precision, relevant, ranked


def _places(similarity: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """int64 (B, M): the rank of each item from 1, those of `mine`, bool (B, M), last."""
    import torch

    # + 0.0 makes zeros positive, since a sort on a GPU may tell -0.0 from 0.0.
    rounded = torch.where(mine, -torch.inf, torch.round(similarity * _STEPS) + 0.0)
    order = rounded.argsort(dim=1, descending=True, stable=True)
    numbers = torch.arange(1, order.shape[1] + 1, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers)


def _scaled(features: np.ndarray, device: str) -> torch.Tensor:
    """float64 (N, D) whose longest row has the length 1; the order of similarities stays."""
    import torch

    rows = torch.as_tensor(features, device=device).double()
    return rows / rows.norm(dim=1).max().clamp(min=torch.finfo(torch.float64).tiny)


def _blocks(
    queries: np.ndarray, gallery: np.ndarray, *, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of at most `most` queries of one class, and the rows of the gallery of that class."""
    for number in np.unique(queries[queries != NO_CLASS]).tolist():
        rows, own = np.flatnonzero(queries == number), np.flatnonzero(gallery == number)
        for start in range(0, len(rows), most):
            yield rows[start : start + most], own


def _median(first: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """The median of `first` (..., Q) over the scored queries, (...)."""
    ordered = np.sort(np.where(scored, first, np.iinfo(np.int64).max), axis=-1)
    n = scored.sum(axis=-1)
    low, high = np.maximum((n - 1) // 2, 0)[..., None], np.maximum(n // 2, 0)[..., None]
    if not ordered.shape[-1]:
        return np.full(n.shape, np.nan)
    high = np.minimum(high, ordered.shape[-1] - 1)
    middle = (np.take_along_axis(ordered, low, -1) + np.take_along_axis(ordered, high, -1)) / 2
    return np.where(n > 0, middle[..., 0], np.nan)


def _none_relevant(items: int, relevant: int, longest: int) -> np.ndarray:
    """float64 (longest + 1,): the probability that the first k of a random order have no relevant item."""
    k = np.arange(longest)
    steps = np.clip((items - relevant - k) / np.maximum(items - k, 1), 0, 1)
    return np.concatenate([[1.0], np.cumprod(steps)])


def _expected_precision(items: int, relevant: int) -> float:
    """The average precision of a random order on average (Bestgen 2015)."""
    harmonic = float((1 / np.arange(1, items + 1)).sum())
    if items == 1:
        return 1.0
    return ((relevant - 1) / (items - 1) * (items - harmonic) + harmonic) / items
