"""WISE: the weighted inter- and intramodal soft-embedding contrastive loss."""

from his2lip.loss.targets import SimilarityWeights
from his2lip.loss.wise import MAX_LOG_SCALE, LossOutput, LossWeights, WISELoss

__all__ = ["MAX_LOG_SCALE", "LossOutput", "LossWeights", "SimilarityWeights", "WISELoss"]
