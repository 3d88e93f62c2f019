"""The cross-entropy towards soft targets in memory linear in N: class sums, and tiled log-sum-exps.

As each row of P sums to 1, CE(P_i, L_i) = logsumexp_j L_ij - sum_j P_ij L_ij. The second sum depends on
labels alone, and is a product with class sums of features. The first needs the logits L = scale · a b^T, a
tile of rows at a time: once for the log-sum-exps of rows and columns, once more for the gradient. An N x N
matrix is never held. In products of N x N x D: four between modalities, three within one, gradients included.

Over several ranks each computes its own rows of L against all columns, once for both directions: only the
log-sum-exps of columns, N numbers, go between the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from his2lip.loss.distributed import Ranks
from his2lip.loss.targets import ClassTargets, SimilarityWeights

# Logits in a tile where none is given: 16 MiB of float32, near a CPU's caches. Two tiles are held.
TILE_ELEMENTS = 1 << 22
_TINY = 1e-12  # the norm below which a vector is left as short as it is, as in torch's normalize


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """L2-normalised rows of (N, D): torch's `normalize`, with a third of the memory in its backward pass."""
    return _UnitRows.apply(features)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        norm = features.norm(dim=1, keepdim=True)
        unit = features / norm.clamp_min(_TINY)
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        unit, norm = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, unit, dim=1)[:, None] * (norm > _TINY)
        return torch.addcmul(gradient, along, unit, value=-1).div_(norm.clamp_min(_TINY))


class LinearCrossEntropy:
    """Cross-entropies of one batch, each rank's share of the sum over the batch."""

    def __init__(
        self,
        labels: torch.Tensor,
        weights: SimilarityWeights | None,
        *,
        tau: float,
        ranks: Ranks,
        dtype: torch.dtype,
        tile: int | None = None,
    ) -> None:
        tissue, biomarker = labels
        self.ranks, self.dtype = ranks, dtype
        self.tile = tile or max(1, TILE_ELEMENTS // max(1, len(tissue)))
        if weights is None:
            self.targets = ClassTargets.hard(tissue)
        else:
            self.targets = ClassTargets.soft(tissue, biomarker, weights, tau)

    def between(self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i ½ CE(P_i, scale · a_i b^T) + ½ CE(P_i, scale · b_i a^T), for (N, D) each."""
        return _CrossEntropy.apply(a, b, scale, self)

    def within(self, a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i CE(P_i, scale · a_i a^T), for (N, D)."""
        return _CrossEntropy.apply(a, None, scale, self)

    def entropy(self) -> torch.Tensor:
        """Share of the sum over rows of the entropy of P_i."""
        return self.targets.entropy(self.ranks.own, self.dtype)

    def tiles(self) -> Iterator[slice]:
        """This rank's rows, a tile at a time."""
        own = self.ranks.own
        for start in range(own.start, own.stop, self.tile):
            yield slice(start, min(start + self.tile, own.stop))


class _CrossEntropy(torch.autograd.Function):
    """½ CE(P, L) + ½ CE(P, L^T) for L = scale · a b^T; `b` None means a itself, where L is symmetric.

    Gradients are made in the forward pass, while a tile of logits is at hand, and backward scales them: the
    result is a sum, so the gradient that arrives is one number. Over several ranks they are the gradients of
    the sum of all shares with respect to this rank's rows of L.
    """

    @staticmethod
    def forward(
        ctx: Any, a: torch.Tensor, b: torch.Tensor | None, scale: torch.Tensor, batch: LinearCrossEntropy
    ) -> torch.Tensor:
        own, label = batch.ranks.own, batch.targets.of_row
        others = a if b is None else b
        # sum_j ½ (P_ij + P_ji) others_j, by the class of row i.
        wanted = 0.5 * batch.targets.symmetric_means(others)
        # Two tiles that are reused: new ones would cause page faults each time.
        buffers = a.new_empty(2, min(batch.tile, own.stop - own.start), len(others))
        row_lse, column_lse = _log_sum_exps(a, b, scale, batch, buffers)
        value = 0.5 * (row_lse.sum() + column_lse[own].sum())
        for tile in batch.tiles():
            value -= scale * (a[tile] * wanted[label[tile]]).sum()
        if not any(ctx.needs_input_grad):
            return value

        d_a, d_scale = torch.zeros_like(a), torch.zeros_like(scale)
        d_b = None if b is None else torch.zeros_like(b)
        for tile in batch.tiles():
            rows = slice(tile.start - own.start, tile.stop - own.start)
            scaled = a[tile] * scale
            logits, pulls = buffers[:, : len(scaled)]
            torch.mm(scaled, others.T, out=logits)
            torch.sub(logits, row_lse[rows, None], out=pulls).exp_()
            pulls.add_(logits.sub_(column_lse).exp_())
            # What the two softmaxes give, half of each, less what the targets want.
            d_rows = wanted[label[tile]].addmm_(pulls, others, beta=-1, alpha=0.5)
            d_scale += (d_rows * a[tile]).sum()
            # Where L is symmetric, the columns' gradient is that of the rows again.
            d_a[tile] = d_rows.mul_(2 * scale if d_b is None else scale)
            if d_b is not None:
                d_b.addmm_(pulls.T, scaled, alpha=0.5)
        if d_b is not None:
            wanted_back = (0.5 * scale) * batch.targets.symmetric_means(a, own)
            for start in range(0, len(d_b), batch.tile):
                tile = slice(start, start + batch.tile)
                d_b[tile] -= wanted_back[label[tile]]
        ctx.save_for_backward(d_a, d_b, d_scale)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)  # the batch, last, has none
        return *(gradient * saved if need else None for saved, need in grads), None


def _log_sum_exps(
    a: torch.Tensor,
    b: torch.Tensor | None,
    scale: torch.Tensor,
    batch: LinearCrossEntropy,
    buffers: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log sum_j exp L_ij (R,) of this rank's rows, and log sum_i exp L_ij (N,) of all columns."""
    others = a if b is None else b
    rows = [a.new_empty(0)]
    columns = a.new_full((len(others),), -torch.inf)
    for tile in batch.tiles():
        logits, spare = buffers[:, : tile.stop - tile.start]
        torch.mm(a[tile] * scale, others.T, out=logits)
        if b is not None:
            columns = torch.logaddexp(columns, _logsumexp(logits, dim=0, out=spare))
        rows.append(_logsumexp(logits, dim=1, out=logits))
    row_lse = torch.cat(rows)
    return row_lse, batch.ranks.gather(row_lse) if b is None else batch.ranks.logsumexp(columns)


def _logsumexp(logits: torch.Tensor, *, dim: int, out: torch.Tensor) -> torch.Tensor:
    """logits.logsumexp(dim), with its N x T intermediate in `out`."""
    largest = logits.amax(dim, keepdim=True)
    return torch.sub(logits, largest, out=out).exp_().sum(dim).log_().add_(largest.squeeze(dim))
