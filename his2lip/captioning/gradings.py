"""How much a sentence says is stained, and how strongly: intensities, shares, patterns and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping

_INTENSITIES = {
    "weak": r"weak\w*|faint\w*|mild\w*|slight\w*|(?<!shedding )(?<!sheds )light(?:ly)?|pale|"
    r"subtl\w+|barely|dim(?:ly)?|low intensity",
    "moderate": r"moderate\w*|intermediate|medium(?! is)",
    "strong": r"strong(?:er|ly)?(?! (?:indicat|suggest|evidence|support|associat))|"
    r"intens(?:e|ely|ive|ively)|markedly|dark(?:ly)?|robust\w*|heav(?:y|ily)|vivid\w*|high intensity",
}
# Words of a seed from which a rewording may say `strong`.
_STRONG_ENOUGH = re.compile(
    r"\b(?:prominent\w*|pronounced|overexpress\w*|"
    r"high (?:\w+ )?(?:express\w*|levels?|concentration|percentage|density))"
)
_MANY_ENOUGH = re.compile(
    r"\b(?:(?:mainly|primarily|largely)(?! (?:located |found |seen |present )?(?:in|within|on|of|around)\b)|"
    r"diffuse\w*|dense\w*|uniform\w*|broad\w*|clusters?|"
    r"high\w* (?:\w+ )?(?:levels?|concentration|density))\b"
)
_SHARES = {
    "few": r"few|rare|rarely|(?<!not a )single|isolated|occasional\w*|sparse\w*|minority|a little|traces? of|"
    r"sporadic\w*",
    "a fraction": r"(?:one )?half|halves|(?:one|a|two) thirds?|(?:one|a|three) quarters?",
    "some": r"some|several|part of the (?:field|tissue|section)|partly|a number of",
    "many": r"many|numerous|abundant\w*|most|mostly|majority|much of|widespread|predominant\w*|"
    r"high (?:percentage|density|proportion|concentration|number)|(?:quite|more than) a few",
    "all": r"(?:nearly|almost|virtually) (?:all|every)|(?<!not )(?<!at )all(?! active| phases)|every|each|"
    r"entire\w*|whole(?! (?:slide|mount))",
    "much": r"much(?! of)",
    "one": r"one (?:\w+ ){0,3}?(?:cell|nucleus|membrane)|one (?:in|of)",
    "partial": r"partial\w*|partly",
    "incomplete": r"incomplete\w*|(?:nearly|almost|virtually|not) complete(?:ly)?",
}
_FEW_ENOUGH = re.compile(
    r"\b(?:scattered|focal\w*|minimal\w*|limited|low (?:\w+ )?(?:abundance|number|density))\b"
)
# One cell: a rewording may call it single, where the seed names no share.
_ONE_CELL = re.compile(
    r"\b(?:an?|one) (?:\w+ ){0,4}?cell(?: nucleus)?"
    r"(?= ?[.,;:]| ?$| (?:with|in|that|which|is|shows|stained|positive\w*)\b)"
    r"|\bone (?:\w+ )?(?:area|region|spot)"
)
_SOME_ENOUGH = re.compile(r"\bnot (?:all|every)\b")
_PARTIAL_ENOUGH = re.compile(
    r"\b(?:focal\w*|patchy|mixed|heterogen\w*|variab\w*|limited|restricted|few|some|not (?:all|every))\b"
)
_GRANULAR_ENOUGH = re.compile(r"\bvesic\w+|\blysosom\w+")
_ALLOWED = {
    "strong": _STRONG_ENOUGH,
    "many": _MANY_ENOUGH,
    "some": _SOME_ENOUGH,
    "few": _FEW_ENOUGH,
    "partial": _PARTIAL_ENOUGH,
    "granular": _GRANULAR_ENOUGH,
}
# Forms of the staining, of which a sentence that names none says nothing.
_FORMS = {
    "dot-like": r"dot ?like|dots?|punctate|speckl\w+|stippl\w+|globul\w+",
    "granular": r"granul(?:es?|ar|arity|arly)",
    "on one side": r"apical\w*|(?:baso)?lateral\w*|basal|luminal\w*|adluminal",
}
_LITTLE = {
    "minimal": r"minimal\w*|negligibl\w+|reduced|diminished|decreased|attenuated|down ?regulated|lowered",
}
# Words of a seed from which a rewording may say `minimal`, beside weak intensities, small shares and denials.
_LITTLE_ENOUGH = re.compile(r"\b(?:low(?:er)?|little|limited|scant\w*|scattered|focal\w*|partial\w*)\b")
_ANOTHER = {
    "another intensity": r"(?:far from|anything but|more than|less than|other than|not (?:so |very |that )?)"
    rf" ?(?:{'|'.join(_INTENSITIES.values())})"
}
_LEVELS = {
    name: re.compile(rf"\b(?:{pattern})\b")
    for name, pattern in {**_INTENSITIES, **_SHARES, **_LITTLE, **_FORMS, **_ANOTHER}.items()
}
# Patterns of staining that exclude each other.
_EXTENTS = {
    "diffuse": r"(?:diffuse|(?<!non )uniform|homogeneous)(?:ly)?"
    r"(?! (?:negativ|unstained|unreactive|blue|absen|lack))",
    "focal": r"focal(?:ly)?|patch(?:y|ily)|patches|heterogen\w*|uneven(?:ly)?|non ?uniform(?:ly)?|variab\w+",
    "complete": r"complete",
    "incomplete": r"incomplete(?:ly)?",
}
OPPOSITE = {"diffuse": "focal", "focal": "diffuse", "complete": "incomplete", "incomplete": "complete"}
_EXTENT = {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in _EXTENTS.items()}
_SCORES = re.compile(r"\b[0-3] ?\+(?!\w)|\+{2,3}|\b(?:h|allred|q)? ?scores?\b|\bgrade[sd]?\b|‰")
_WORDS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "eleven": "11",
    "twelve": "12",
    "dozen": "12",
    "thirteen": "13",
    "fourteen": "14",
    "fifteen": "15",
    "sixteen": "16",
    "seventeen": "17",
    "eighteen": "18",
    "nineteen": "19",
    "twenty": "20",
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "seventy": "70",
    "eighty": "80",
    "ninety": "90",
    "hundred": "100",
    "thousand": "1000",
    "couple": "2",
}
_NUMBER = re.compile(
    r"(?:(?P<below>less than|fewer than|under|below|<|up to|at most) ?"
    r"|(?P<above>more than|over|above|exceed\w*|>|at least) ?)?"
    rf"(?<![\w.-])(?P<value>\d+(?:[.,]\d+)?|(?:{'|'.join(_WORDS)})s?|tenths?|fifths?)\b"
    r"(?! ?x\b)(?P<percent> ?(?:%|per ?cent\b))?"
)


def grades(text: str) -> frozenset[str]:
    """The intensities and shares that a text in lower case names."""
    return found_in(_LEVELS, text)


def allowed(text: str, named: frozenset[str], *, denied: bool) -> frozenset[str]:
    """The grades that a rewording of a text may name beside those that it names itself (`grades`).

    denied  whether the text denies staining, and asserts none
    """
    few = {"few", "one"} if _ONE_CELL.search(text) and not named & set(_SHARES) else set()
    little = {"minimal"} if denied or named & {"weak", "few"} or _LITTLE_ENOUGH.search(text) else set()
    return found_in(_ALLOWED, text) | few | little


def extents(text: str) -> frozenset[str]:
    """The patterns of staining that a text names, of those in `OPPOSITE`."""
    return found_in(_EXTENT, text)


def numbers(text: str) -> frozenset[str]:
    """The scores and numbers of a text; `below thirty per cent` and `less than 30 %` are both `<30%`."""
    found = {match[0].replace(" ", "") for match in _SCORES.finditer(text)}
    for match in _NUMBER.finditer(text):
        bound = "<" if match["below"] else ">" if match["above"] else ""
        value = _WORDS.get(match["value"].removesuffix("s"), match["value"].replace(",", "."))
        found.add(f"{bound}{value}{'%' if match['percent'] else ''}")
    return frozenset(found)


def found_in(patterns: Mapping[str, re.Pattern[str]], text: str) -> frozenset[str]:
    """The names of the patterns that the text has."""
    return frozenset(name for name, pattern in patterns.items() if pattern.search(text))
