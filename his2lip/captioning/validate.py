"""Validation of rewordings: each must say what its seed says, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Literal, NamedTuple, Protocol

from his2lip.captioning.claims import CELLS, PARTS, PLACES, Claims, Sign, claims
from his2lip.captioning.gradings import OPPOSITE
from his2lip.data.captions import STAINS, plain

Check = Literal[
    "form", "biomarker", "tissue type", "polarity", "compartment", "cells", "grading", "length", "duplicate"
]

NEAR = 0.9  # similarity of two sequences of words from which sentences are near-duplicates
_LEAST_WORDS, _MOST_SENTENCES = 4, 2
# What a model says about its task, or was told by somebody else, in place of a rewording.
_NOT_A_CAPTION = re.compile(
    r"\b(?:sorry|apologi[sz]e|as an ai|language model|i (?:can(?:not|'t|’t)|am|will|have|would)|i['’]m|"
    r"unable to (?:help|assist|comply|provide)|here (?:is|are)|sure|certainly|of course|ignore|disregard|"
    r"instructions?|prompts?|(?:system|assistant)(?= ?(?::|prompt|message|role))|reword\w*|rephras\w+|"
    r"paraphras\w+|captions?|sentences?|json|click|visit|download|password|api key|you|your|please|reviewer|"
    r"accept (?:this|all))\b|https?:|www\.|[<>{}\[\]|`*#\\]|\$\(",
    re.IGNORECASE,
)


# Tissue types that names of their cells stand for: they count only where something is claimed of them.
_BY_CELLS = ("Immune cells", "Stroma")


class Refusal(NamedTuple):
    """The check that a rewording failed, and what it found."""

    check: Check
    reason: str

    def __str__(self) -> str:
        return f"{self.check}: {self.reason}"


class Lengths(Protocol):
    """Tells which captions a text tower would cut, as `models.CaptionTokenizer` does."""

    context_length: int

    def too_long(self, captions: Iterable[str]) -> list[str]: ...


@dataclass
class Validator:
    """Validates the rewordings of one seed, one after the other.

    seed       the seed's text
    tissue     canonical tissue type of its key, or None
    biomarker  canonical biomarker of its key, or None
    lengths    tokenizer of the backbone that is to be trained
    known      captions that the seed has already, besides itself; those that pass are added
    """

    seed: str
    tissue: str | None
    biomarker: str | None
    lengths: Lengths
    known: list[str] = field(default_factory=list)

    def refusal(self, text: str) -> Refusal | None:
        """Why this rewording cannot be used, by the first check that it fails; None where it passes."""
        glass = self.tissue == "Background"
        refused = (
            _form(text)
            or _meaning(
                claims(self.seed, glass=glass), claims(text, glass=glass), self.tissue, self.biomarker
            )
            or self._length(text)
            or self._duplicate(text)
        )
        if refused is None:
            self.known.append(text)
        return refused

    def _length(self, text: str) -> Refusal | None:
        if self.lengths.too_long([text]):
            return Refusal(
                "length", f"longer than the {self.lengths.context_length} tokens of the text tower"
            )
        return None

    def _duplicate(self, text: str) -> Refusal | None:
        for other in (self.seed, *self.known):
            if similar(text, other) >= NEAR:
                return Refusal("duplicate", f"nearly the same as '{other}'")
        return None


def similar(one: str, other: str) -> float:
    """Share of words, 0 to 1, that two sentences have in the same order (Ratcliff and Obershelp 1988)."""
    words = (plain(one).split(), plain(other).split())
    return SequenceMatcher(None, *words, autojunk=False).ratio()


def _form(text: str) -> Refusal | None:
    if len(plain(text).split()) < _LEAST_WORDS:
        return Refusal("form", "not a sentence")
    if "\n" in text.strip() or len(re.findall(r"[.!?](?:\s|$)", text)) > _MOST_SENTENCES:
        return Refusal("form", f"more than {_MOST_SENTENCES} sentences")
    if found := _NOT_A_CAPTION.search(text):
        return Refusal("form", f"not a caption: '{found[0]}'")
    latin = re.sub(r"(?<=\d)[αβε](?!\w)", "", text)  # `CD3ε` is a name
    if any(not letter.isprintable() or (letter.isalpha() and ord(letter) > 0x24F) for letter in latin):
        return Refusal("form", "letters of another alphabet")
    return None


def _meaning(seed: Claims, new: Claims, tissue: str | None, biomarker: str | None) -> Refusal | None:
    return (
        _markers(seed, new, biomarker)
        or _tissue(seed, new, tissue, biomarker)
        or _organ(seed, new, tissue)
        or _polarity(seed, new)
        or _doubts(seed, new, tissue)
        or _compartment(seed, new)
        or _grading(seed, new)
    )


def _markers(seed: Claims, new: Claims, biomarker: str | None) -> Refusal | None:
    if other := sorted(new.markers - seed.markers - {biomarker}):
        return Refusal("biomarker", f"names {other[0]}")
    if lost := sorted(seed.markers & {biomarker} - new.markers):
        return Refusal("biomarker", f"does not name {lost[0]}")
    return None


def _tissue(seed: Claims, new: Claims, tissue: str | None, biomarker: str | None) -> Refusal | None:
    known = seed.named | {tissue} | (claims(STAINS[biomarker].cells).named if biomarker else frozenset())
    said = new.named - (set(_BY_CELLS) - set(new.parts))
    if other := [name for name in PLACES if name in said and name not in known]:
        return Refusal("tissue type", f"names {other[0]}, of which the seed says nothing")
    if new.aside and not seed.aside and tissue == "Tumor":
        return Refusal("tissue type", "is about what lies beside the tumour")
    if tissue in seed.named and tissue not in new.named:
        return Refusal("tissue type", f"does not name {tissue}")
    return None


def _organ(seed: Claims, new: Claims, tissue: str | None) -> Refusal | None:
    known = seed.organs | ({"lung"} if "Alveoli" in seed.named | {tissue} else set())
    if other := sorted(new.organs - known):
        return Refusal("tissue type", f"names {other[0]}, of which the seed says nothing")
    return None


def _polarity(seed: Claims, new: Claims) -> Refusal | None:
    if seed.stained and not (new.shown or (new.perhaps and not new.unstained)):
        return Refusal("polarity", "does not say that anything is stained")
    denied = {part for part, signs in seed.parts.items() if "unstained" in signs}
    if seed.unstained and not new.unstained and not (denied and denied <= seed.mixed & new.restricted):
        return Refusal("polarity", "does not say what is not stained")
    if new.unstained and not seed.unstained:
        return Refusal("polarity", "denies staining")
    if new.stained and not (seed.shown or seed.perhaps) and (seed.unstained or new.asserted):
        return Refusal("polarity", "asserts staining")
    for part, signs in seed.parts.items():
        own = new.parts.get(part)
        if own and not own & signs and part not in seed.mixed & (new.mixed | new.restricted):
            return Refusal("polarity", f"{part} {_told(own)}, and by the seed {_told(signs)}")
    if "stained" in new.background - seed.background or (new.background and new.background < seed.background):
        return Refusal("polarity", "says something else of the background")
    return None


def _doubts(seed: Claims, new: Claims, tissue: str | None) -> Refusal | None:
    allowed = seed.doubts if tissue == "Tumor" else seed.doubts | {"normal"}
    if doubt := sorted(new.doubts - allowed):
        return Refusal("polarity", f"calls what is seen {doubt[0]}, which the seed does not say")
    return None


def _compartment(seed: Claims, new: Claims) -> Refusal | None:
    if other := [part for part in PARTS if part in new.parts and part not in seed.named]:
        return Refusal("compartment", f"{other[0]}, of which the seed says nothing")
    stained = [part for part in PARTS if "stained" in new.parts.get(part, ())]
    if set(PARTS) & set(seed.parts) and (other := [part for part in stained if part not in seed.parts]):
        return Refusal("compartment", f"{other[0]}, of which the seed claims nothing")
    cells = [name for name in CELLS if name in seed.parts]
    if cells and (other := [name for name in CELLS if name in new.parts and name not in seed.named]):
        return Refusal("cells", f"{other[0]}, of which the seed says nothing")
    return None


def _grading(seed: Claims, new: Claims) -> Refusal | None:
    if other := sorted(new.numbers - seed.numbers) or sorted(new.grades - seed.grades - seed.allowed):
        return Refusal("grading", f"'{other[0]}', which the seed does not say")
    for name in sorted(new.extents - seed.extents):
        if OPPOSITE[name] in seed.extents:
            return Refusal("grading", f"'{name}', and by the seed '{OPPOSITE[name]}'")
        if name in ("diffuse", "focal") and seed.unstained and not seed.stained:
            return Refusal("grading", f"'{name}', where the seed denies staining")
    return None


def _told(signs: frozenset[Sign]) -> str:
    return " and ".join(sorted(signs))
