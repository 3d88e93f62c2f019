"""From labels to soft targets: the similarity S, P = softmax(S / tau), and the entropy of P.

N is the number of pairs in the global batch, R the rows of this rank, K the label classes that occur, and
D the features. t_i is the tissue type of pair i, and b_i is its biomarker.

    S_ij = w_t [t_i = t_j]  +  w_p [t_i = t_j and b_i = b_j]  +  w_b [b_i = b_j]
         + w_f [t_i = t_j and b_i = b_j and f_i = f_j]

f_i is the finding: the staining band and the dataset's own class, as far as captions follow them. In the
paper, w_t = w_p = 1 and w_b = w_f = 0: S_ij is then the scalar product of label vectors, each a one-hot
vector of the tissue type (7) and one of the (tissue type, biomarker) pair (84). A label of -1 is missing. A
missing biomarker or finding equals no other. A row with a missing tissue type is similar to itself only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from his2lip.loss.config import SimilarityWeights


def own_classes(
    tissue: torch.Tensor, biomarker: torch.Tensor, finding: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels int64 (N,) in which each missing label (-1) is replaced by an id that only its row has.

    A row without a tissue type gets such an id for its biomarker too.
    """
    own = -1 - torch.arange(len(tissue), device=tissue.device)
    no_tissue = tissue < 0
    return (
        torch.where(no_tissue, own, tissue),
        torch.where(no_tissue | (biomarker < 0), own, biomarker),
        torch.where(finding < 0, own, finding),
    )


def similarity(
    tissue: torch.Tensor,
    biomarker: torch.Tensor,
    finding: torch.Tensor,
    weights: SimilarityWeights,
    *,
    rows: slice = slice(None),
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """S (R, N) of the given rows of the batch, from labels int64 (N,), -1 where missing."""
    labels = own_classes(tissue, biomarker, finding)
    same_tissue, same_biomarker, same_finding = (ids[rows, None] == ids[None, :] for ids in labels)
    parts = (
        (weights.tissue, same_tissue),
        (weights.pair, same_tissue & same_biomarker),
        (weights.biomarker, same_biomarker),
        (weights.finding, same_tissue & same_biomarker & same_finding),
    )
    total = torch.zeros(same_tissue.shape, dtype=dtype, device=tissue.device)
    for weight, same in parts:
        total += weight * same.to(dtype)
    return total


@dataclass(frozen=True)
class ClassTargets:
    """P by label classes, without N x N entries: rows with the same labels have the same row of P.

    exp(S_ij / tau) has only five different values, one for each set of labels that i and j can share. So the
    sum over j of exp(S_ij / tau) f_j is

        nothing · sum of all f_j                  +  tissue · sum of f_j with t_j = t_i
        + biomarker · sum of f_j with b_j = b_i   +  pair · sum of f_j with both
        + all · sum of f_j with both and the same finding

    with the five numbers that `coefficients` returns. They are multiplied by exp(-S_ii / tau), so that they
    do not overflow for a small tau. Where the finding has no weight, label classes are pairs and `all` is 0.
    """

    of_row: torch.Tensor  # int64 (N,), the label class of each row, in 0..K-1
    tissue: torch.Tensor  # int64 (K,), the tissue id of each label class, numbered from 0
    biomarker: torch.Tensor  # int64 (K,), the biomarker id of each label class, numbered from 0
    pair: torch.Tensor  # int64 (K,), the pair of each label class, numbered from 0
    weights: SimilarityWeights | None  # None: hard targets, P is the identity matrix
    tau: float

    @classmethod
    def soft(cls, labels: torch.Tensor, weights: SimilarityWeights, tau: float) -> ClassTargets:
        """Soft targets of a batch with labels int64 (3, N), -1 where missing."""
        own = torch.stack(own_classes(*labels))
        if not weights.finding:
            own = own[:2]
        classes, of_row = torch.unique(own, dim=1, return_inverse=True)
        pair = torch.unique(classes[:2], dim=1, return_inverse=True)[1]
        return cls(of_row, _compact(classes[0]), _compact(classes[1]), pair, weights, tau)

    @classmethod
    def hard(cls, tissue: torch.Tensor) -> ClassTargets:
        """One-hot targets of N rows, as in the CLIP loss: the only match of a row is its own pair.

        tissue  int64 (N,), of which only N and the device are used
        """
        rows = torch.arange(len(tissue), device=tissue.device)
        return cls(rows, rows, rows, rows, None, 1.0)

    def coefficients(self) -> _Coefficients:
        """The coefficients in the docstring of the class."""
        if self.weights is None:
            return _Coefficients(0.0, 0.0, 0.0, 1.0, 0.0)
        return self._differences([math.exp(s - self._full) for s in self._sums])

    def partition(self, dtype: torch.dtype) -> torch.Tensor:
        """(K,) sum_j exp((S_ij - S_ii) / tau) for a row i of each label class."""
        ones = torch.ones(len(self.of_row), 1, dtype=dtype, device=self.of_row.device)
        return self._weighted_sums(self.class_sums(ones), self.coefficients()).squeeze(1)

    def class_sums(self, features: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """(K, D) the sum of features (R, D) over each label class; `rows` are their rows in the batch."""
        zeros = features.new_zeros(len(self.tissue), features.shape[1])
        return zeros.index_add(0, self.of_row[rows], features)

    def symmetric_means(self, features: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """(K, D) the sum over j in `rows` of (P_ij + P_ji) f_j, for a row i of each label class.

        `features` f is (N, D).
        """
        partition = self.partition(features.dtype)[:, None]
        sums, coefficients = self.class_sums(features[rows], rows), self.coefficients()
        by_rows = self._weighted_sums(sums, coefficients) / partition
        return by_rows + self._weighted_sums(sums / partition, coefficients)

    def entropy(self, own: slice, dtype: torch.dtype) -> torch.Tensor:
        """The sum of H(P_i) over the rows `own`, a scalar in nats, where Z_i = sum_j exp(S_ij / tau) and

        H(P_i) = log Z_i - sum_j exp(S_ij / tau) S_ij / (tau Z_i).
        """
        if self.weights is None:
            return torch.zeros((), dtype=dtype, device=self.of_row.device)
        # As in `partition`, S_ij - S_ii replaces S_ij: the entropy is equal, and small tau do not overflow.
        coefficients = self._differences([math.exp(s - self._full) * (s - self._full) for s in self._sums])
        ones = torch.ones(len(self.of_row), 1, dtype=dtype, device=self.of_row.device)
        partition = self.partition(dtype)
        mean = self._weighted_sums(self.class_sums(ones), coefficients).squeeze(1) / partition
        return (partition.log() - mean)[self.of_row[own]].sum()

    def _differences(self, values: list[float]) -> _Coefficients:
        """Coefficients from the values for rows that share nothing, the tissue, the biomarker, both, all."""
        nothing, tissue, biomarker, pair, full = values
        both = pair - tissue - biomarker + nothing
        return _Coefficients(nothing, tissue - nothing, biomarker - nothing, both, full - pair)

    def _weighted_sums(self, sums: torch.Tensor, coefficients: _Coefficients) -> torch.Tensor:
        """(K, D) from class sums (K, D): the sum in the docstring of the class, for each label class."""
        groups = [(coefficients.tissue, self.tissue), (coefficients.biomarker, self.biomarker)]
        if self._by_finding:
            total = coefficients.all * sums
            groups.append((coefficients.pair, self.pair))
        else:
            total = coefficients.pair * sums
        if coefficients.nothing:
            total = total + coefficients.nothing * sums.sum(0)
        for coefficient, group in groups:
            if coefficient:
                total = total + coefficient * torch.zeros_like(sums).index_add(0, group, sums)[group]
        return total

    @property
    def _by_finding(self) -> bool:
        return self.weights is not None and self.weights.finding > 0

    @property
    def _full(self) -> float:
        return self._sums[-1]

    @property
    def _sums(self) -> tuple[float, ...]:
        """S / tau of rows that share nothing, the tissue type, the biomarker, both, and the finding too."""
        w = self.weights
        assert w is not None, "hard targets have no similarity"
        pair = w.full - w.finding
        return 0.0, w.tissue / self.tau, w.biomarker / self.tau, pair / self.tau, w.full / self.tau


class _Coefficients(NamedTuple):
    """The factors in the docstring of `ClassTargets`."""

    nothing: float
    tissue: float
    biomarker: float
    pair: float
    all: float


def _compact(ids: torch.Tensor) -> torch.Tensor:
    return torch.unique(ids, return_inverse=True)[1]
