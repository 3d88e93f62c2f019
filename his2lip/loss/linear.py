"""The cross-entropy towards soft targets in memory linear in N: class sums, and tiled log-sum-exps.

Each row of P sums to 1, so CE(P_i, L_i) = logsumexp_j L_ij - sum_j P_ij L_ij. P_ij depends only on the labels
of i and j, so the second sum is computed from class sums of the features. The log-sum-exp needs the logits
L = scale · a b^T. They are computed in tiles of rows: once for the log-sum-exps of rows and columns, and once
more for the gradient. No N x N matrix is ever in memory. With gradients, the cost is four matrix products of
N x N x D between modalities, and three within one modality.

With several ranks, each rank computes the logits of its own rows against all columns. The same logits serve
both directions. Only the log-sum-exps of the columns, N numbers per rank, are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from his2lip.loss.distributed import Ranks
from his2lip.loss.targets import ClassTargets, SimilarityWeights

# Default number of logits in a tile, of which two are in memory. On a CPU: 16 MiB of float32, which fits its
# cache. A GPU needs larger products to be busy (benchmarks/results/gpu_log.txt): 256 MiB.
TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
_TINY = 1e-12  # smallest norm that a row is divided by, as in torch.nn.functional.normalize


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (N, D): L2-normalises the rows, as torch.nn.functional.normalize does.

    The backward pass needs a third of the memory of torch's.
    """
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
    """Cross-entropies of one global batch. Each method returns this rank's share of the sum over its rows.

    labels   int64 (3, N): tissue, biomarker and finding ids of the global batch, -1 where missing
    weights  of the similarity; None: hard targets
    tau      temperature of the targets
    dtype    of the features
    tile     rows of logits in a tile; None: as many as make TILE_ELEMENTS logits
    """

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
        tissue = labels[0]
        self.ranks, self.dtype = ranks, dtype
        logits = TILE_ELEMENTS.get(tissue.device.type, TILE_ELEMENTS["cpu"])
        self.tile = tile or max(1, logits // max(1, len(tissue)))
        if weights is None:
            self.targets = ClassTargets.hard(tissue)
        else:
            self.targets = ClassTargets.soft(labels, weights, tau)

    def between(self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i ½ CE(P_i, scale · a_i b^T) + ½ CE(P_i, scale · b_i a^T), for a and b (N, D)."""
        return _CrossEntropy.apply(a, b, scale, self)

    def within(self, a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i CE(P_i, scale · a_i a^T), for a (N, D)."""
        return _CrossEntropy.apply(a, None, scale, self)

    def entropy(self) -> torch.Tensor:
        """Share of sum_i H(P_i), the entropy of the targets: a scalar, in nats."""
        return self.targets.entropy(self.ranks.own, self.dtype)

    def tiles(self) -> Iterator[slice]:
        """This rank's rows of the global batch, one slice per tile."""
        own = self.ranks.own
        for start in range(own.start, own.stop, self.tile):
            yield slice(start, min(start + self.tile, own.stop))


class _CrossEntropy(torch.autograd.Function):
    """½ CE(P, L) + ½ CE(P, L^T) for L = scale · a b^T. With `b` None, b is a, and L is symmetric.

    The forward pass computes the gradients, while each tile of logits is in memory. The result is one number,
    so backward only multiplies them by the gradient of that number. With several ranks they are the gradients
    of the sum of all shares with respect to this rank's rows of L.
    """

    @staticmethod
    def forward(
        ctx: Any, a: torch.Tensor, b: torch.Tensor | None, scale: torch.Tensor, batch: LinearCrossEntropy
    ) -> torch.Tensor:
        own, label = batch.ranks.own, batch.targets.of_row
        others = a if b is None else b
        # sum_j ½ (P_ij + P_ji) others_j, (K, D): one row per label class of i.
        target_means = 0.5 * batch.targets.symmetric_means(others)
        # Two tiles are reused, because new memory for each tile would cause page faults.
        buffers = a.new_empty(2, min(batch.tile, own.stop - own.start), len(others))
        row_lse, column_lse = _log_sum_exps(a, b, scale, batch, buffers)
        value = 0.5 * (row_lse.sum() + column_lse[own].sum())
        for tile in batch.tiles():
            value -= scale * (a[tile] * target_means[label[tile]]).sum()
        if not any(ctx.needs_input_grad):
            return value

        d_a, d_scale = torch.zeros_like(a), torch.zeros_like(scale)
        d_b = None if b is None else torch.zeros_like(b)
        for tile in batch.tiles():
            rows = slice(tile.start - own.start, tile.stop - own.start)
            scaled = a[tile] * scale
            logits, softmaxes = buffers[:, : len(scaled)]
            torch.mm(scaled, others.T, out=logits)
            torch.sub(logits, row_lse[rows, None], out=softmaxes).exp_()
            softmaxes.add_(logits.sub_(column_lse).exp_())
            # The mean of the row softmax and the column softmax, minus the targets, times `others`.
            d_rows = target_means[label[tile]].addmm_(softmaxes, others, beta=-1, alpha=0.5)
            d_scale += (d_rows * a[tile]).sum()
            # Where L is symmetric, the gradient through the columns equals the gradient through the rows.
            d_a[tile] = d_rows.mul_(2 * scale if d_b is None else scale)
            if d_b is not None:
                d_b.addmm_(softmaxes.T, scaled, alpha=0.5)
        if d_b is not None:
            target_means_of_a = (0.5 * scale) * batch.targets.symmetric_means(a, own)
            for start in range(0, len(d_b), batch.tile):
                tile = slice(start, start + batch.tile)
                d_b[tile] -= target_means_of_a[label[tile]]
        ctx.save_for_backward(d_a, d_b, d_scale)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)  # the last input, batch, has none
        return *(gradient * saved if need else None for saved, need in grads), None


def _log_sum_exps(
    a: torch.Tensor,
    b: torch.Tensor | None,
    scale: torch.Tensor,
    batch: LinearCrossEntropy,
    buffers: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(R,) log sum_j exp L_ij of this rank's rows, and (N,) log sum_i exp L_ij of all columns."""
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
    """logits.logsumexp(dim) for logits (T, N), which uses `out` (T, N) for its intermediate result."""
    largest = logits.amax(dim, keepdim=True)
    return torch.sub(logits, largest, out=out).exp_().sum(dim).log_().add_(largest.squeeze(dim))
