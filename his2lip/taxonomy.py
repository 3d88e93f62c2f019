"""Canonical names of tissue types and biomarkers, their fixed ids, and the spellings seen in the wild."""

from __future__ import annotations

import re
from collections.abc import Iterable

from his2lip.errors import TaxonomyError, did_you_mean

# The 7 tissue types of MIHIC; a tissue type's id is its place here, and never changes.
TISSUES: tuple[str, ...] = ("Alveoli", "Background", "Immune cells", "Necrosis", "Other", "Stroma", "Tumor")

# The 12 biomarkers of MIHIC first, then those of the other nine datasets; ids are places here: append only.
MIHIC_BIOMARKERS: tuple[str, ...] = (
    "CD3", "CD20", "CD34", "CD38", "CD68", "CDK4", "Cyclin-D1", "D2-40", "FAP", "Ki67", "P53", "SMA",
)  # fmt: skip
BIOMARKERS: tuple[str, ...] = (
    *MIHIC_BIOMARKERS, "CD8", "CD31", "ER", "FOXP3", "HER2", "PanCK", "PR", "proSPC", "Cc10", "FHL2",
    "Podocin",
)  # fmt: skip

# Aliases are compared with case, spaces, hyphens and underscores removed; `+` (as in CD3+) is removed too.
_TISSUE_ALIASES = {
    "alveolus": "Alveoli",
    "immunecell": "Immune cells",
    "necrotic": "Necrosis",
    "others": "Other",
    "tumour": "Tumor",
}
_BIOMARKER_ALIASES = {
    "ccnd1": "Cyclin-D1",
    "cyclind": "Cyclin-D1",
    "podoplanin": "D2-40",
    "pdpn": "D2-40",
    "mib1": "Ki67",
    "cki67": "Ki67",  # a slip in the released prompts
    "tp53": "P53",
    "asma": "SMA",
    "alphasma": "SMA",
    "actasma": "SMA",
    "pecam1": "CD31",
    "oestrogenreceptor": "ER",
    "estrogenreceptor": "ER",
    "esr1": "ER",
    "her2neu": "HER2",
    "erbb2": "HER2",
    "pck": "PanCK",
    "pancytokeratin": "PanCK",
    "cytokeratin": "PanCK",
    "pgr": "PR",
    "progesteronereceptor": "PR",
    "prosurfactantproteinc": "proSPC",
    "prospc4": "proSPC",
    "scgb1a1": "Cc10",
}


def _key(name: str) -> str:
    return re.sub(r"[\s_\-+/.]", "", name).lower()


_TISSUE_KEYS = {_key(t): t for t in TISSUES} | _TISSUE_ALIASES
_BIOMARKER_KEYS = {_key(b): b for b in BIOMARKERS} | _BIOMARKER_ALIASES


def tissue(name: str) -> str:
    """The canonical tissue type that `name` spells. Raises TaxonomyError for an unknown one."""
    try:
        return _TISSUE_KEYS[_key(name)]
    except KeyError:
        raise TaxonomyError(f"unknown tissue type '{name}'", mend=did_you_mean(name, TISSUES)) from None


def biomarker(name: str) -> str:
    """The canonical biomarker that `name` spells. Raises TaxonomyError for an unknown one."""
    try:
        return _BIOMARKER_KEYS[_key(name)]
    except KeyError:
        raise TaxonomyError(f"unknown biomarker '{name}'", mend=did_you_mean(name, BIOMARKERS)) from None


def find_biomarker(text: str, among: Iterable[str] | None = None) -> str | None:
    """The biomarker that stands as a whole word in `text` (a file name, say), longest spelling first.

    `29-041-Izd2-w35-proSPC-4-les1` gives proSPC, `0011-CD34-1-1` gives CD34 (never CD3), `x-D2-40-1` D2-40.
    `among` narrows the search to some canonical names. None where none stands there.
    """
    wanted = set(BIOMARKERS if among is None else among)
    for spelling, pattern in _PATTERNS:
        name = _BIOMARKER_KEYS[spelling]
        if name in wanted and pattern.search(text):
            return name
    return None


def _pattern(spelling: str) -> re.Pattern[str]:
    """Letters and digits of a spelling with optional separators between, bounded by non-alphanumerics."""
    body = r"[\s_\-]?".join(re.escape(c) for c in spelling)
    return re.compile(rf"(?<![A-Za-z0-9]){body}(?![A-Za-z0-9])", re.IGNORECASE)


_PATTERNS = [(k, _pattern(k)) for k in sorted(_BIOMARKER_KEYS, key=lambda k: (-len(k), k))]


def tissue_id(name: str | None) -> int:
    """The fixed id of a canonical tissue type; -1 for a missing label."""
    return -1 if name is None else TISSUES.index(name)


def biomarker_id(name: str | None) -> int:
    """The fixed id of a canonical biomarker; -1 for a missing label."""
    return -1 if name is None else BIOMARKERS.index(name)
