"""From labels to soft targets: similarity S, P = softmax(S / tau), their entropy, dense and by classes.

Letters: N pairs of the global batch, R of them this rank's rows, K label classes present, D features.

    S_ij = w_t [t_i = t_j]  +  w_p [t_i = t_j and b_i = b_j]  +  w_b [b_i = b_j]

The published similarity is w_t = w_p = 1, w_b = 0: the scalar product of one-hot labels of tissue type (7)
and of (tissue type, biomarker) pair (84). A missing label (-1) belongs to its own row alone: a missing
biomarker makes a biomarker class of that row, a missing tissue type makes the row similar to itself only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from his2lip.loss.config import SimilarityWeights


def own_classes(tissue: torch.Tensor, biomarker: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The null rules: int64 labels (N,) in which each missing one (-1) has become a class of its own row."""
    own = -1 - torch.arange(len(tissue), device=tissue.device)
    no_tissue = tissue < 0
    return (
        torch.where(no_tissue, own, tissue),
        torch.where(no_tissue | (biomarker < 0), own, biomarker),
    )


def similarity(
    tissue: torch.Tensor,
    biomarker: torch.Tensor,
    weights: SimilarityWeights,
    *,
    rows: slice = slice(None),
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """S (R, N) for some rows of the batch, from raw labels int64 (N,), -1 where missing."""
    tissue, biomarker = own_classes(tissue, biomarker)
    same_tissue = tissue[rows, None] == tissue[None, :]
    same_biomarker = biomarker[rows, None] == biomarker[None, :]
    parts = (
        (weights.tissue, same_tissue),
        (weights.pair, same_tissue & same_biomarker),
        (weights.biomarker, same_biomarker),
    )
    total = torch.zeros(same_tissue.shape, dtype=dtype, device=tissue.device)
    for weight, same in parts:
        total += weight * same.to(dtype)
    return total


@dataclass(frozen=True)
class ClassTargets:
    """P without its N x N entries: rows with the same two labels share a row of P, so K rows tell it all.

    exp(S_ij / tau) takes four values, by what i and j share, so the sum over j of exp(S_ij / tau) f_j is

        nothing · sum over all  +  tissue · sum over t_i  +  biomarker · sum over b_i  +  pair · sum over both

    with the four coefficients below, all scaled by exp(-S_ii / tau) so that no tau overflows.
    """

    of_row: torch.Tensor  # int64 (N,), the label class of each row, in 0..K-1
    tissue: torch.Tensor  # int64 (K,), the tissue class of each label class, in 0..K_t-1
    biomarker: torch.Tensor  # int64 (K,), its biomarker class, in 0..K_b-1
    weights: SimilarityWeights | None  # None: hard targets, P is the identity
    tau: float

    @classmethod
    def soft(
        cls, tissue: torch.Tensor, biomarker: torch.Tensor, weights: SimilarityWeights, tau: float
    ) -> ClassTargets:
        """Targets of a batch with raw labels int64 (N,), -1 where missing."""
        labels = torch.stack(own_classes(tissue, biomarker))
        (tissues, biomarkers), of_row = torch.unique(labels, dim=1, return_inverse=True)
        return cls(of_row, _compact(tissues), _compact(biomarkers), weights, tau)

    @classmethod
    def hard(cls, tissue: torch.Tensor) -> ClassTargets:
        """Targets of the plain CLIP loss: each row answers to its own partner alone."""
        rows = torch.arange(len(tissue), device=tissue.device)
        return cls(rows, rows, rows, None, 1.0)

    def coefficients(self) -> tuple[float, float, float, float]:
        """(nothing, tissue, biomarker, pair), as the class docstring uses them."""
        if self.weights is None:
            return 0.0, 0.0, 0.0, 1.0
        nothing, tissue, biomarker = (math.exp(s - self._full) for s in (0.0, self._tissue, self._biomarker))
        return nothing, tissue - nothing, biomarker - nothing, 1.0 - tissue - biomarker + nothing

    def partition(self, dtype: torch.dtype) -> torch.Tensor:
        """(K,) sum over j of exp((S_ij - S_ii) / tau), for a row i of each label class."""
        ones = torch.ones(len(self.of_row), 1, dtype=dtype, device=self.of_row.device)
        return self._weighted_sums(self.class_sums(ones), self.coefficients()).squeeze(1)

    def class_sums(self, features: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """(K, D) sums of features (R, D) over each label class; `rows` says which of the batch they are."""
        zeros = features.new_zeros(len(self.tissue), features.shape[1])
        return zeros.index_add(0, self.of_row[rows], features)

    def symmetric_means(self, features: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """(K, D) sum over j in `rows` of (P_ij + P_ji) f_j for a row i of each class; features f (N, D)."""
        partition = self.partition(features.dtype)[:, None]
        sums, coefficients = self.class_sums(features[rows], rows), self.coefficients()
        given = self._weighted_sums(sums, coefficients) / partition
        return given + self._weighted_sums(sums / partition, coefficients)

    def entropy(self, own: slice, dtype: torch.dtype) -> torch.Tensor:
        """Sum over the rows `own` of the entropy of P_i: log Z_i - sum_j exp(S_ij / tau) S_ij / (tau Z_i)."""
        if self.weights is None:
            return torch.zeros((), dtype=dtype, device=self.of_row.device)
        # S_ij - S_ii in place of S_ij, as in the partition: the entropy is the same, and no tau overflows.
        nothing, tissue, biomarker = (
            math.exp(s - self._full) * (s - self._full) for s in (0.0, self._tissue, self._biomarker)
        )
        coefficients = (nothing, tissue - nothing, biomarker - nothing, nothing - tissue - biomarker)
        ones = torch.ones(len(self.of_row), 1, dtype=dtype, device=self.of_row.device)
        partition = self.partition(dtype)
        mean = self._weighted_sums(self.class_sums(ones), coefficients).squeeze(1) / partition
        return (partition.log() - mean)[self.of_row[own]].sum()

    def _weighted_sums(
        self, sums: torch.Tensor, coefficients: tuple[float, float, float, float]
    ) -> torch.Tensor:
        """(K, D) from class sums (K, D): all, the same tissue type, the same biomarker, its own."""
        nothing, tissue, biomarker, pair = coefficients
        total = pair * sums
        if nothing:
            total = total + nothing * sums.sum(0)
        for coefficient, group in ((tissue, self.tissue), (biomarker, self.biomarker)):
            if coefficient:
                total = total + coefficient * torch.zeros_like(sums).index_add(0, group, sums)[group]
        return total

    @property
    def _full(self) -> float:
        return self.weights.full / self.tau if self.weights else 0.0

    @property
    def _tissue(self) -> float:
        return self.weights.tissue / self.tau if self.weights else 0.0

    @property
    def _biomarker(self) -> float:
        return self.weights.biomarker / self.tau if self.weights else 0.0


def _compact(ids: torch.Tensor) -> torch.Tensor:
    return torch.unique(ids, return_inverse=True)[1]
