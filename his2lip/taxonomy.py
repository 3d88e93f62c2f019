"""The taxonomy: canonical names of tissue types and biomarkers, their ids, and other spellings of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from his2lip.errors import TaxonomyError, did_you_mean

# The 7 tissue types of MIHIC. A tissue type's id is its index here and never changes.
TISSUES: tuple[str, ...] = ("Alveoli", "Background", "Immune cells", "Necrosis", "Other", "Stroma", "Tumor")

# The 12 biomarkers of MIHIC, then those of the other nine datasets. A biomarker's id is its index here, so
# new ones are only appended.
MIHIC_BIOMARKERS: tuple[str, ...] = (
    "CD3", "CD20", "CD34", "CD38", "CD68", "CDK4", "Cyclin-D1", "D2-40", "FAP", "Ki67", "P53", "SMA",
)  # fmt: skip
BIOMARKERS: tuple[str, ...] = (
    *MIHIC_BIOMARKERS, "CD8", "CD31", "ER", "FOXP3", "HER2", "PanCK", "PR", "proSPC", "Cc10", "FHL2",
    "Podocin",
)  # fmt: skip

# Spellings in published files. Case is ignored. A separator (space, hyphen, underscore) is optional where a
# spelling has one, and between a letter and a digit: ki67, Ki-67 and KI 67 are the same name. Elsewhere it is
# not: CD3-1 is not CD31.
_TISSUE_ALIASES = {
    "alveolus": "Alveoli",
    "immune cell": "Immune cells",
    "necrotic": "Necrosis",
    "others": "Other",
    "tumour": "Tumor",
}
_BIOMARKER_ALIASES = {
    "CCND1": "Cyclin-D1",
    "podoplanin": "D2-40",
    "PDPN": "D2-40",
    "MIB-1": "Ki67",
    "CKi67": "Ki67",  # a typing error in the released prompts
    "TP53": "P53",
    "alpha-SMA": "SMA",
    "aSMA": "SMA",
    "PECAM1": "CD31",
    "oestrogen receptor": "ER",
    "estrogen receptor": "ER",
    "ESR1": "ER",
    "HER2-neu": "HER2",
    "ERBB2": "HER2",
    "PCK": "PanCK",
    "pan-cytokeratin": "PanCK",
    "cytokeratin": "PanCK",
    "PGR": "PR",
    "progesterone receptor": "PR",
    "pro-surfactant protein C": "proSPC",
    "SCGB1A1": "Cc10",
}

_SEPARATOR = re.compile(r"[\s_\-]+")
_BETWEEN = r"[\s_\-]?"


def _pattern(spelling: str) -> str:
    """A regular expression of a spelling, with optional separators."""
    parts = [re.sub(r"(?<=[A-Za-z])(?=\d)", "\0", part).split("\0") for part in _SEPARATOR.split(spelling)]
    return _BETWEEN.join(re.escape(piece) for part in parts for piece in part)


def _patterns(names: Iterable[str], aliases: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """(pattern, canonical name) of each spelling, the longest first. A pattern matches only whole words."""
    spellings = {name: name for name in names} | aliases
    ordered = sorted(spellings, key=lambda s: (-len(s), s))
    bounded = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])"
    return [(re.compile(bounded.format(_pattern(s)), re.IGNORECASE), spellings[s]) for s in ordered]


_TISSUE_PATTERNS = _patterns(TISSUES, _TISSUE_ALIASES)
_BIOMARKER_PATTERNS = _patterns(BIOMARKERS, _BIOMARKER_ALIASES)


def normalised(text: str) -> str:
    """The form in which names are stored: Unicode NFC, without surrounding white space."""
    return unicodedata.normalize("NFC", text).strip()


def folded(text: str) -> str:
    """The form in which names are compared: `normalised` and case-folded."""
    return normalised(text).casefold()


def tissue(name: str) -> str:
    """The canonical name of a tissue type. Raises TaxonomyError for an unknown one."""
    return _canonical(name, _TISSUE_PATTERNS, "tissue type", TISSUES)


def biomarker(name: str) -> str:
    """The canonical name of a biomarker (`CD3+` is CD3). Raises TaxonomyError for an unknown one."""
    return _canonical(name, _BIOMARKER_PATTERNS, "biomarker", BIOMARKERS)


def find_biomarker(text: str, among: Iterable[str] | None = None) -> str | None:
    """The biomarker that is a whole word of `text` (such as a file name), or None. Longer spellings win.

    among  canonical names to which the search is restricted

    `29-041-Izd2-w35-proSPC-4-les1` gives proSPC, `0011-CD34-1-1` CD34, `x-CD3-4-1` CD3, `x-D2-40-1` D2-40.
    """
    return partition_biomarker(text, among)[1]


def partition_biomarker(text: str, among: Iterable[str] | None = None) -> tuple[str, str | None, str]:
    """The text before the biomarker of `find_biomarker`, its canonical name, and the text after it."""
    wanted = set(BIOMARKERS if among is None else among)
    for pattern, canonical in _BIOMARKER_PATTERNS:
        if canonical in wanted and (match := pattern.search(text)):
            return text[: match.start()], canonical, text[match.end() :]
    return text, None, ""


def _canonical(
    name: str, patterns: list[tuple[re.Pattern[str], str]], kind: str, known: tuple[str, ...]
) -> str:
    spelling = normalised(name).rstrip("+")
    for pattern, canonical in patterns:
        if pattern.fullmatch(spelling):
            return canonical
    raise TaxonomyError(f"unknown {kind} '{name}'", key=name, fix=did_you_mean(name, known))


def tissue_id(name: str | None) -> int:
    """The id of a canonical tissue type; -1 for None."""
    return -1 if name is None else TISSUES.index(name)


def biomarker_id(name: str | None) -> int:
    """The id of a canonical biomarker; -1 for None."""
    return -1 if name is None else BIOMARKERS.index(name)
