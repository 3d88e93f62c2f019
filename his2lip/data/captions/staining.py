"""The staining band of a caption: what a patch's label states, checked against what its pixels show."""

from __future__ import annotations

from his2lip.data.shards import Staining, Statement

# Bands by the share of the tissue on which DAB lies (`images.stained_share`). No caption asserts staining
# below ASSERTED_FROM. A label denies it only below DENIED_BELOW: between the two lie a few stained cells,
# which a label may call negative (Ki67 below 20 % of nuclei).
ASSERTED_FROM = 0.01
DENIED_BELOW = 0.05
_MODERATE_FROM, _STRONG_FROM = 0.05, 0.20


def band(share: float) -> Staining:
    """The band of a stained share, 0 to 1, of a patch's tissue (`images.stained_share`)."""
    if share < ASSERTED_FROM:
        return "negative"
    if share < _MODERATE_FROM:
        return "weak"
    return "moderate" if share < _STRONG_FROM else "strong"


def captioned(stated: Statement, share: float | None) -> tuple[Staining | None, str | None]:
    """The staining band and the described class of a patch's caption.

    share  of the tissue that is stained; None: it cannot be measured, as where the stain is not DAB

    The band is the one stated, or the measured one where none is stated, or only that there is staining. It
    is None where pixels contradict the statement: the caption then says nothing about staining. Without a
    measure, `positive` is described in words, since its amount is unknown.
    """
    staining, described = stated
    if share is None:
        if staining == "positive":
            return None, described or "positive"
        return staining, described
    if staining is None:
        return band(share), described
    agree = share < DENIED_BELOW if staining == "negative" else share >= ASSERTED_FROM
    if not agree:
        return None, described
    return (band(share) if staining == "positive" else staining), described
