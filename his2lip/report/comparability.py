"""Whether a published pair of accuracy and macro F1 can come from a number of classes at all."""

from __future__ import annotations

# Published figures have two decimals of a percent, rounded or cut: one unit of the last place either way.
LAST_PLACE = 1e-4

NOT_COMPARABLE = "not comparable: the published pair cannot come from this many classes"


def macro_f1_bounds(accuracy: float, classes: int) -> tuple[float, float]:
    """The least and the largest macro F1 that any result of this accuracy over K classes can have.

    Least: all correct answers lie in one class, and all wrong ones are answered with or belong to it, so that
    the other K - 1 classes score 0 and it scores 2a / (1 + a). Largest: for K = 2 the mean of the two F1
    never exceeds the accuracy (a test counts all small tables through); for more classes, 1.
    `accuracy` is a fraction in [0, 1]; raises ValueError for another, or for fewer than two classes.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is a fraction, not {accuracy}")
    if classes < 2:
        raise ValueError(f"two classes or more are wanted, not {classes}")
    least = 2 * accuracy / ((1 + accuracy) * classes)
    return least, accuracy if classes == 2 else 1.0


def comparable(accuracy: float, macro_f1: float, classes: int) -> bool:
    """Whether the pair (fractions) is possible for this many classes, up to what printing takes away."""
    least, _ = macro_f1_bounds(max(accuracy - LAST_PLACE, 0.0), classes)
    _, largest = macro_f1_bounds(min(accuracy + LAST_PLACE, 1.0), classes)
    return least - LAST_PLACE <= macro_f1 <= largest + LAST_PLACE
