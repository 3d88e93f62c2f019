"""WISE: the weighted inter- and intramodal soft-embedding contrastive loss."""

from his2lip.loss.targets import SimilarityWeights
from his2lip.loss.wise import LossOutput, LossWeights, WISELoss

__all__ = ["LossOutput", "LossWeights", "SimilarityWeights", "WISELoss"]
