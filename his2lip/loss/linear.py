"""The cross-entropy towards soft targets in memory linear in N: class sums, and a tiled row log-sum-exp."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from his2lip.loss.targets import ClassTargets, SimilarityWeights

# Logits held at once where no tile is given: 16 MiB of float32, which stays near the caches.
TILE_ELEMENTS = 1 << 22


class LinearCrossEntropy:
    """Cross-entropies of one batch over the rows `own`, no N x N matrix ever held.

    As each row of P sums to 1, CE(P_i, L_i) = logsumexp_j L_ij - sum_j P_ij L_ij; the second sum depends on
    labels alone, and is a product with class sums of features.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        weights: SimilarityWeights | None,
        *,
        tau: float,
        own: slice,
        dtype: torch.dtype,
        tile: int | None = None,
    ) -> None:
        self.own, self.dtype, self.tile = own, dtype, tile
        tissue, biomarker = labels
        if weights is None:
            self.targets = ClassTargets.hard(tissue)
        else:
            self.targets = ClassTargets.soft(tissue, biomarker, weights, tau)

    def __call__(self, rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Sum over i in `own` of CE(P_i, scale · rows_i columns^T), for (N, D), (N, D) and a scalar."""
        part = rows if self.own == slice(0, len(rows)) else rows[self.own]
        normalizer = sum_logsumexp(part, columns, scale, tile=self.tile)
        return normalizer - scale * self.targets.alignment(part, columns, self.own)

    def entropy(self) -> torch.Tensor:
        """Sum over the rows `own` of the entropy of P_i."""
        return self.targets.entropy(self.own, self.dtype)


def sum_logsumexp(
    rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, *, tile: int | None = None
) -> torch.Tensor:
    """Sum over i of log sum_j exp(scale · rows_i · columns_j): rows (R, D), columns (N, D), scalar scale.

    `tile` is how many rows of logits are held at once. Differentiable once in all three.
    """
    if tile is None:
        tile = max(1, TILE_ELEMENTS // max(1, len(columns)))
    return _SumLogsumexp.apply(rows, None if columns is rows else columns, scale, tile)


class _SumLogsumexp(torch.autograd.Function):
    """Gradients are made in the forward pass, while a tile of logits is at hand; backward only scales them.

    The result is a sum, so the gradient that arrives is one number, and every logit is computed once: three
    products (logits, and one for each side's gradient) where recomputing tiles in backward would need four.
    `columns` None means the rows themselves: the two gradients then share one buffer.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, columns: torch.Tensor | None, scale: torch.Tensor, tile: int
    ) -> torch.Tensor:
        others = rows if columns is None else columns
        wanted = any(ctx.needs_input_grad)
        total, d_scale = rows.new_zeros(()), rows.new_zeros(())
        d_rows = torch.zeros_like(rows) if wanted else rows
        d_others = d_rows if columns is None else torch.zeros_like(others) if wanted else others
        buffer = rows.new_empty(min(tile, len(rows)), len(others))
        for start in range(0, len(rows), tile):
            part = rows[start : start + tile]
            scaled = part * scale
            p = torch.mm(scaled, others.T, out=buffer[: len(part)])
            total += _softmax_in_place(p)
            if wanted:
                pulled = p @ others
                d_scale += (pulled * part).sum()
                d_rows[start : start + tile].add_(pulled.mul_(scale))
                d_others.addmm_(p.T, scaled)
        if wanted:
            ctx.save_for_backward(d_rows, None if columns is None else d_others, d_scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad
        grads = zip(needed, ctx.saved_tensors, strict=False)  # the tile, last, has none
        return *(gradient * saved if need else None for need, saved in grads), None


def _softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    """Turns logits (T, N) into their row softmax in place, and returns the sum of their row log-sum-exps."""
    largest = logits.amax(1, keepdim=True)
    logits.sub_(largest).exp_()
    partition = logits.sum(1, keepdim=True)
    logits.div_(partition)
    return (largest + partition.log()).sum()
