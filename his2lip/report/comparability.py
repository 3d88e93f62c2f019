"""Whether a published pair of accuracy and macro F1 is possible for a number of classes."""

from __future__ import annotations

from his2lip.config import OptionError
from his2lip.evaluation import CellResult

# Published figures are percentages with two decimals, rounded or truncated, so their error is at most this.
LAST_PLACE = 1e-4

IMPOSSIBLE = "*"  # beside published figures that are not comparable
NOT_COMPARABLE = "not comparable: the published pair cannot come from this many classes"


def macro_f1_bounds(accuracy: float, classes: int) -> tuple[float, float]:
    """The smallest and the largest macro F1 that a result of accuracy `accuracy` over K classes can have.

    The smallest is 2a / ((1 + a) K). There, all correct predictions are of one class, and in every wrong one
    the true or the predicted class is that class. Its F1 is 2a / (1 + a), and the F1 of the others is 0. The
    largest for K = 2 is the accuracy (a test checks all small tables). For K > 2 it is given as 1.
    Raises OptionError, a ValueError, where `accuracy` is not in [0, 1] or `classes` is less than 2.
    """
    if not 0 <= accuracy <= 1:
        raise OptionError(f"accuracy must be from 0 to 1, got {accuracy}", key="accuracy")
    if classes < 2:
        raise OptionError(f"classes must be 2 or more, got {classes}", key="classes")
    least = 2 * accuracy / ((1 + accuracy) * classes)
    return least, accuracy if classes == 2 else 1.0


def is_possible(accuracy: float, macro_f1: float, classes: int) -> bool:
    """Whether a published pair, in fractions, is possible for this number of classes, given its rounding."""
    least, _ = macro_f1_bounds(max(accuracy - LAST_PLACE, 0.0), classes)
    _, largest = macro_f1_bounds(min(accuracy + LAST_PLACE, 1.0), classes)
    return least - LAST_PLACE <= macro_f1 <= largest + LAST_PLACE


def is_comparable(cell: CellResult) -> bool:
    """Whether the published figures of a grid cell are possible; true where it has none."""
    accuracy, macro_f1 = cell.published("accuracy"), cell.published("macro_f1")
    return accuracy is None or macro_f1 is None or is_possible(accuracy, macro_f1, len(cell.classes))
