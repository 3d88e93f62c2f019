"""Whether a published pair of accuracy and macro F1 is possible for a number of classes."""

from __future__ import annotations

# Published figures have two decimals of a percent, rounded or cut: one unit of the last place either way.
LAST_PLACE = 1e-4

NOT_COMPARABLE = "not comparable: the published pair cannot come from this many classes"


def macro_f1_bounds(accuracy: float, classes: int) -> tuple[float, float]:
    """The smallest and the largest macro F1 of any result of this accuracy over K classes.

    Smallest: all correct predictions are of one class, and every wrong one is of that class or predicts it.
    The other K - 1 classes then have F1 0, and that class has 2a / (1 + a). Largest: for K = 2 the mean of
    the two F1 never exceeds the accuracy (a test checks all small tables); 1 for more classes.
    Raises ValueError where `accuracy` is not in [0, 1], or for fewer than two classes.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy must be a fraction, not {accuracy}")
    if classes < 2:
        raise ValueError(f"there must be two classes or more, not {classes}")
    least = 2 * accuracy / ((1 + accuracy) * classes)
    return least, accuracy if classes == 2 else 1.0


def is_possible(accuracy: float, macro_f1: float, classes: int) -> bool:
    """Whether this pair, in fractions, is possible for this many classes, up to the rounding in print."""
    least, _ = macro_f1_bounds(max(accuracy - LAST_PLACE, 0.0), classes)
    _, largest = macro_f1_bounds(min(accuracy + LAST_PLACE, 1.0), classes)
    return least - LAST_PLACE <= macro_f1 <= largest + LAST_PLACE
