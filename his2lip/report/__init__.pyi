from .dataset_page import write_page as write_page
from .pages import write_pages as write_pages
