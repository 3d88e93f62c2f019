from .config import TERMS as TERMS
from .config import LossConfig as LossConfig
from .config import LossWeights as LossWeights
from .config import SimilarityWeights as SimilarityWeights
from .wise import MAX_LOG_SCALE as MAX_LOG_SCALE
from .wise import LossOutput as LossOutput
from .wise import WISELoss as WISELoss
