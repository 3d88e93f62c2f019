from .dataset_page import write_page as write_page
from .model_figures import DECIMALS as DECIMALS
from .model_figures import MEAN as MEAN
from .model_figures import Summary as Summary
from .model_figures import summaries as summaries
from .model_figures import table_columns as table_columns
from .pages import write_pages as write_pages
from .verification import verify_pages as verify_pages
