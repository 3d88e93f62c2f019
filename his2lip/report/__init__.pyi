from .board import Board as Board
from .board import published_rows as published_rows
from .board import read_board as read_board
from .comparability import macro_f1_bounds as macro_f1_bounds
from .dataset_page import write_page as write_page
from .pages import write_pages as write_pages
