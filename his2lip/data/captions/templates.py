"""Our own captions: how a tissue looks, and how much of what a biomarker marks is stained."""

from __future__ import annotations

from functools import cache

from his2lip.data.captions.biology import PLACES, STAINS, UNKNOWN_STAIN, Pair, Stain
from his2lip.data.captions.frames import FRAMES, framed
from his2lip.data.shards import STAININGS, Staining
from his2lip.taxonomy import BIOMARKERS, TISSUES

Key = tuple[str | None, str | None, Staining]

_LEAST = 18  # captions of a key, as far as there are frames

# How tissues look, without a word on staining.
LOOKS: dict[str | None, tuple[str, ...]] = {
    "Alveoli": (
        "thin septa part open air spaces",
        "delicate walls border empty air spaces",
        "air spaces stand open between slender walls",
    ),
    "Immune cells": (
        "small round lymphoid cells lie closely packed",
        "dense round nuclei fill the field",
        "lymphoid cells with scant cytoplasm crowd together",
    ),
    "Necrosis": (
        "granular debris holds ghost outlines and shrunken nuclei",
        "dead tissue has lost its nuclei",
        "cell borders dissolve in structureless debris",
    ),
    "Other": (
        "the tissue is neither tumour nor stroma",
        "blood, cartilage, pigment or bronchial lining is seen",
    ),
    "Stroma": (
        "wavy collagen runs between spindle cells",
        "loose fibres hold slender nuclei and vessels",
        "fibroblasts lie along bundles of collagen",
    ),
    "Tumor": (
        "cohesive nests show enlarged nuclei",
        "large pale nuclei with nucleoli form sheets",
        "malignant cells lie in nests",
    ),
    None: (),
}

# {cells} and {site} are those of Stain. Each is a clause without its full stop. None: unknown staining.
CLAUSES: dict[Staining | None, tuple[str, ...]] = {
    "negative": (
        "only the blue counterstain is seen",
        "the {site} of {cells} stay without brown",
        "{cells} are unstained or absent, and the field is blue",
        "blue is the only colour, without brown {site}",
    ),
    "weak": (
        "a few {cells} have brown {site}",
        "brown {site} can be made out on single {cells}",
        "staining is sparse and picks out scattered {cells}",
        "most of the field is blue, with a little brown on {cells}",
    ),
    "moderate": (
        "some {cells} have brown {site} and others stay blue",
        "brown {site} of {cells} cover part of the field",
        "a moderate part of the field is stained, on {cells}",
        "brown {cells} lie beside blue ones",
    ),
    "strong": (
        "many {cells} have dark brown {site}",
        "brown {site} of {cells} cover much of the field",
        "staining is strong and widespread, on {cells}",
        "dark brown {cells} dominate the field",
    ),
    None: (
        "the antibody looks for {cells} by their {site}",
        "what is read are the {site} of {cells}",
        "the target of the antibody are {cells}",
    ),
}

# The same where a tissue type has no cells of its own that have the antigen, as in necrosis or blood.
WITHOUT_CARRIERS: dict[Staining | None, tuple[str, ...]] = {
    "negative": (
        "only the blue counterstain is seen",
        "the field stays without brown",
        "nothing here binds the antibody",
    ),
    "weak": (
        "a little brown lies on the tissue",
        "faint or scattered brown is seen",
        "traces of brown are left",
    ),
    "moderate": ("brown covers part of the field", "a moderate part of the tissue is brown"),
    "strong": ("brown covers much of the field", "brown is strong and widespread on the tissue"),
    None: ("the antibody looks for {cells}", "{cells} are not a part of this tissue"),
}

# HER2 in the words of its scores 0, 1+, 2+ and 3+ (Wolff et al. 2018, ASCO/CAP guideline update, J Clin Oncol
# 36:2105-2122), which are its bands. A band may also be measured, so no caption names a score.
HER2_CLAUSES: dict[Staining | None, tuple[str, ...]] = {
    "negative": (
        "tumour cells are free of membrane staining",
        "only the blue counterstain is seen on the tumour cells",
        "the membranes stay without brown",
    ),
    "weak": (
        "membranes are faintly and incompletely stained",
        "a faint, broken brown line marks part of the membranes",
        "barely visible brown lies on some membranes",
    ),
    "moderate": (
        "membranes have a weak to moderate complete brown line",
        "a thin brown outline closes around many tumour cells",
        "membranes are moderately brown",
    ),
    "strong": (
        "intense and complete brown outlines surround the tumour cells",
        "membranes are dark brown and closed like a net",
        "strong circumferential brown lies on the membranes",
    ),
    None: (
        "what is read are the membranes of tumour cells",
        "the antibody looks for tumour cells by their membranes",
    ),
}

BACKGROUND: dict[Staining | None, tuple[str, ...]] = {
    "negative": (
        "bare glass is pale and even, without cells or brown chromogen",
        "no tissue is present and neither blue nor brown is seen",
        "the field lies outside the section and is nearly white",
        "only clean mounting medium is visible, so nothing is stained",
    ),
    "weak": ("bare glass has a trace of brown dirt or chromogen", "a little brown lies on empty glass"),
    "moderate": ("brown deposits lie on glass without tissue",),
    "strong": ("much brown precipitate lies on glass without tissue",),
    None: ("the field lies outside the section", "glass without tissue is seen"),
}

CLASS = ("labelled {}", "of the class {}", "classified as {}")  # how a class of the dataset's own is named


@cache
def sentences(tissue: str | None, biomarker: str | None, staining: Staining | None = None) -> tuple[str, ...]:
    """All template captions of a key, without repetition, in a fixed order.

    tissue, biomarker  canonical names, or None
    staining           of the patch; None: unknown, so that the captions neither assert nor deny it
    """
    stain = STAINS[biomarker] if biomarker else UNKNOWN_STAIN
    if tissue == "Background":
        findings = list(BACKGROUND[staining])
    else:
        cells, site = stain.carriers(tissue)
        clauses = [clause.format(cells=cells, site=site) for clause in _clauses(stain, tissue, staining)]
        looks = LOOKS[tissue]
        findings = [f"{look}, and {clause}" for clause in clauses for look in looks] if looks else clauses
    each = min(len(FRAMES), max(2, -(-_LEAST // len(findings))))
    return framed(findings, PLACES[tissue], stain.name, each=each)


def _clauses(stain: Stain, tissue: str | None, staining: Staining | None) -> tuple[str, ...]:
    if not stain.has_carriers(tissue):
        return WITHOUT_CARRIERS[staining]
    if stain.name == "HER2":
        return HER2_CLAUSES[staining]
    if staining == "strong" and not stain.crowded:
        staining = "moderate"
    return CLAUSES[staining]


@cache
def bank() -> dict[Pair, tuple[str, ...]]:
    """Captions of every pair of tissue type (or none) and biomarker (or none) where staining is unknown."""
    return {(t, b): sentences(t, b) for t in (*TISSUES, None) for b in (*BIOMARKERS, None)}


@cache
def bank_by_staining() -> dict[Key, tuple[str, ...]]:
    """Captions of every pair and staining band."""
    return {(t, b, s): sentences(t, b, s) for t, b in bank() for s in STAININGS}


def with_class(caption: str, described: str, number: int) -> str:
    """The caption, with a class of the dataset's own that says more than tissue type and staining.

    described  the class in words; number: chooses one of several wordings
    """
    return f"{caption.removesuffix('.')}, {CLASS[number % len(CLASS)].format(described)}."
