"""The plain N x N cross-entropy towards soft targets: what the linear path must equal."""

from __future__ import annotations

import torch

from his2lip.loss.distributed import Ranks
from his2lip.loss.targets import SimilarityWeights, similarity


class ReferenceCrossEntropy:
    """Cross-entropies of one batch, each rank's share of the sum over the batch, every matrix written out."""

    def __init__(
        self,
        labels: torch.Tensor,
        weights: SimilarityWeights | None,
        *,
        tau: float,
        ranks: Ranks,
        dtype: torch.dtype,
    ) -> None:
        tissue, biomarker = labels
        self.own = own = ranks.own
        if weights is None:
            self.targets = torch.eye(len(tissue), dtype=dtype, device=tissue.device)[own]
        else:
            scores = similarity(tissue, biomarker, weights, rows=own, dtype=dtype)
            self.targets = (scores / tau).softmax(dim=1)

    def between(self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i ½ CE(P_i, scale · a_i b^T) + ½ CE(P_i, scale · b_i a^T), for (N, D) each."""
        return 0.5 * (self._direction(a, b, scale) + self._direction(b, a, scale))

    def within(self, a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Share of sum_i CE(P_i, scale · a_i a^T), for (N, D)."""
        return self._direction(a, a, scale)

    def entropy(self) -> torch.Tensor:
        """Share of the sum over rows of the entropy of P_i."""
        return torch.special.entr(self.targets).sum()

    def _direction(self, rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        logits = scale * rows[self.own] @ columns.T
        return -(self.targets * logits.log_softmax(dim=1)).sum()
