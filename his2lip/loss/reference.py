"""The plain N x N cross-entropy towards soft targets: what the linear path must equal."""

from __future__ import annotations

import torch

from his2lip.loss.targets import SimilarityWeights, similarity


class ReferenceCrossEntropy:
    """Cross-entropies of one batch over the rows `own`, every matrix written out."""

    def __init__(
        self,
        labels: torch.Tensor,
        weights: SimilarityWeights | None,
        *,
        tau: float,
        own: slice,
        dtype: torch.dtype,
    ) -> None:
        tissue, biomarker = labels
        self.own = own
        if weights is None:
            self.targets = torch.eye(len(tissue), dtype=dtype, device=tissue.device)[own]
        else:
            scores = similarity(tissue, biomarker, weights, rows=own, dtype=dtype)
            self.targets = (scores / tau).softmax(dim=1)

    def __call__(self, rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Sum over i in `own` of CE(P_i, scale · rows_i columns^T), for (N, D), (N, D) and a scalar."""
        logits = scale * rows[self.own] @ columns.T
        return -(self.targets * logits.log_softmax(dim=1)).sum()

    def entropy(self) -> torch.Tensor:
        """Sum over the rows `own` of the entropy of P_i."""
        return torch.special.entr(self.targets).sum()
