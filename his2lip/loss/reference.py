"""The cross-entropy towards soft targets by its definition, with N x N matrices, to test the linear form."""

from __future__ import annotations

import torch

from his2lip.loss.distributed import Ranks
from his2lip.loss.targets import SimilarityWeights, similarity


class ReferenceCrossEntropy:
    """The same as `LinearCrossEntropy`, with the targets P and the logits L as matrices (R, N)."""

    def __init__(
        self,
        labels: torch.Tensor,
        weights: SimilarityWeights | None,
        *,
        tau: float,
        ranks: Ranks,
        dtype: torch.dtype,
    ) -> None:
        tissue, biomarker, finding = labels
        self.own = own = ranks.own
        if weights is None:
            self.targets = torch.eye(len(tissue), dtype=dtype, device=tissue.device)[own]
        else:
            scores = similarity(tissue, biomarker, finding, weights, rows=own, dtype=dtype)
            self.targets = (scores / tau).softmax(dim=1)

    def between(self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i ½ CE(P_i, scale · a_i b^T) + ½ CE(P_i, scale · b_i a^T), for a and b (N, D)."""
        return 0.5 * (self._direction(a, b, scale) + self._direction(b, a, scale))

    def within(self, a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i CE(P_i, scale · a_i a^T), for a (N, D)."""
        return self._direction(a, a, scale)

    def entropy(self) -> torch.Tensor:
        """Share of sum_i H(P_i), the entropy of the targets: a scalar, in nats."""
        return torch.special.entr(self.targets).sum()

    def _direction(self, rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i CE(P_i, scale · rows_i columns^T), for rows and columns (N, D)."""
        logits = scale * rows[self.own] @ columns.T
        return -(self.targets * logits.log_softmax(dim=1)).sum()
