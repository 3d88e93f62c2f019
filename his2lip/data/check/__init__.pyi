from .card import check_card as check_card
from .dataset import CheckReport as CheckReport
from .dataset import check as check
from .image_stats import NO_STAIN as NO_STAIN
from .image_stats import SAMPLES as SAMPLES
from .image_stats import ImageStats as ImageStats
from .leaks import KINDS as KINDS
