"""Report: the leaderboard as pages, and whether a published figure can be compared with."""

from his2lip.report.board import Board, published_rows, read_board
from his2lip.report.comparable import comparable, macro_f1_bounds
from his2lip.report.pages import write_pages

__all__ = ["Board", "comparable", "macro_f1_bounds", "published_rows", "read_board", "write_pages"]
