"""What a sentence about staining claims: what is stained and what is not, how strongly, where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from his2lip import taxonomy
from his2lip.data.captions import STAINS

Sign = Literal["stained", "unstained"]

# Names of biomarkers in text that the taxonomy does not have, since published files do not use them.
_NAMES = {
    r"smooth[ -]muscle actin": "SMA",
    r"fibroblast activation protein": "FAP",
    r"cyclin[ -]dependent kinase 4": "CDK4",
    r"cyclin(?:[ -]?d1?)?": "Cyclin-D1",
    r"d2": "D2-40",
    r"tumou?r protein p53": "P53",
}
# Markers beyond the taxonomy. Any CD number is one.
_OTHER_MARKERS = re.compile(
    r"(?<![a-z0-9])(?:cd\d+[a-z]?|pd-?l?1|egfr|alk|ros1|ttf-?1|napsin(?: a)?|p16|p21|p27|p40|p63|s-?100|"
    r"sox-?\d+|vimentin|desmin|gfap|synaptophysin|chromogranin|insm1|bcl-?[26]|mum1|msh[26]|mlh1|pms2|"
    r"ck ?\d+|e-?cadherin|gata-?3|psa|her3|caldesmon|calponin|melan-?a|hmb-?45|mdm2|ctla-?4|lag-?3|"
    r"granzyme(?: b)?|cytokeratin ?\d+)(?![a-z0-9])"
)

# What can be stained: parts of the cell, tissue types, and kinds of cells, which belong to tissue types.
_TUMOUR = r"tumou?r(?:s|al|ous)?|carcinoma\w*|adenocarcinoma\w*|malignan\w+|neoplas\w+|cancer\w*"
_PARTS = {
    "nuclear": r"nucle(?:us|i|ar)|intranuclear",
    "membranous": r"membran\w+|circumferential\w*|cell surface",
    "cytoplasmic": r"cytoplasm\w*|intracytoplasmic|cytosol\w*",
}
_PLACES = {
    "Tumor": _TUMOUR,
    "Stroma": r"strom\w+|\w*fibroblast\w*|connective tissue|collagen\w*|desmoplas\w+",
    "Immune cells": r"immune|lympho\w+|inflammatory|leu[ck]ocyt\w+|[tb] (?:cells?|lymphocytes?)|"
    r"plasma cells?|macrophag\w+|histiocyt\w+|monocyt\w+|regulatory t|ha?ematopoiet\w+",
    "Necrosis": r"necro\w+|debris|dead tissue",
    "Alveoli": r"\w*alveol\w*|pneumocytes?|septal?|septum|air ?spaces?|air sacs?",
    "Background": r"background|glass|mounting medium|outside the section",
}
_CELLS = {
    "tumour cells": rf"(?:{_TUMOUR})(?: \w+)? (?:cells?|nucle(?:us|i)|membranes?|nests?|epitheli\w+)",
    "T cells": r"t (?:cells?|lymphocytes?)",
    "B cells": r"b (?:cells?|lymphocytes?)",
    "plasma cells": r"plasma cells?|plasmacyt\w+",
    "macrophages": r"macrophag\w+|histiocyt\w+",
    "fibroblasts": r"\w*fibroblast\w*|spindle cells?",
    "vessels": r"\w*vessels?|\w*vascul\w+|\w*endotheli\w+|capillar\w+|lymphatic\w*",
    "pneumocytes": r"pneumocyt\w+",
}
_NAMED = {**_PARTS, **_PLACES, **_CELLS}
_PATTERNS = {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in _NAMED.items()}
PARTS, PLACES, CELLS = tuple(_PARTS), tuple(_PLACES), tuple(_CELLS)
# Words with `tumour` that are no claim about tumour cells, and those that do not even name the tissue.
_SUPPRESSOR = re.compile(r"\b(?:tumou?r|cancer) (?:suppress\w+|protein)")
_AT_TUMOUR = re.compile(
    r"\b(?:tumou?r|cancer) (?:micro ?environments?|associated|infiltrating)|\bperitumou?r\w+"
)

# Words that deny staining by themselves, and those that deny what their clause asserts.
_BLUE = (
    r"(?:stays?|stayed|remain(?:s|ed|ing)?|keeps?|are|is|appears?|looks?|leaves?|left|only|all|purely|entirely)"
    r" (?:(?!stain)\w+ ){0,6}?(?<!in )blue(?! in\b| (?:\w+ )?stain)|blue is"
)
_UNSTAINED = re.compile(
    rf"\b(?:negativ\w+|unstained|un(?:react|label|colou?r)\w*|non ?(?:immuno)?(?:reactiv|stain)\w*|"
    rf"colou?rless|only (?:the )?(?:blue )?(?:counterstain|ha?ematoxylin)|counterstain only|null|{_BLUE})\b"
)
_DENIES = re.compile(
    r"\b(?:without|lack(?:s|ing|ed)?|absent|absence|devoid|void of|free (?:of|from)|"
    r"fail(?:s|ed|ing)?|missing|un(?:detect|express|affect)\w*|non ?express\w*|invisible|"
    r"exclud\w+|rather than|instead of|hardly|cannot|zero|clean|nothing)\b"
)
_RESULT = r"(?:MARKER|(?:immuno)?stain\w*|express\w*|positiv\w+|signal|(?:immuno)?reactiv\w+)"
_LOST = re.compile(
    rf"\b(?:los(?:s|t|es|ing) (?:of )?(?:\w+ ){{0,3}}{_RESULT}"
    rf"|{_RESULT} (?:\w+ ){{0,3}}(?:is|are|was|been) (?:\w+ )?lost)\b"
)
_NOT = re.compile(r"\b(?:no|not|none|never|nowhere|neither|nor|spar(?:e|es|ed|ing)|\w+n't)\b")
_NO_DENIAL = re.compile(
    r"\bnot (?:only|merely|limited|just|all)\b|\bno (?:doubt|less)\b|\bnothing but\b|\bcounterstained\b"
)
# Words that assert staining, and those that do where the sentence is about staining at all.
_STAINED = re.compile(
    r"\b(?:(?:immuno)?stain(?:s|ed|ing)?|positiv\w+|brown\w*|(?:immuno)?react\w+|(?:over)?express\w*|labell?\w*|"
    r"decorat\w+|chromogen|dab|signal|colou?ration|tint\w*)\b"
)
_POSITIVE = re.compile(r"\b(?:positiv\w+|brown\w*|(?:immuno)?reactiv\w+|(?:over)?express\w*|decorat\w+)\b")
_SHOWN = re.compile(
    r"\b(?:mark(?:s|ed|ing)|highlight\w*|outlin\w+|detect\w+|visuali[sz]\w+|delineat\w+|identif\w+|"
    r"picks? out|(?:shows?|contains?|carr(?:y|ies)|has|have|bears?) (?:\w+ )?MARKER|"
    r"present|presence|evident|reveal\w+)\b"
)
# The name of the method, which says nothing about the result.
_METHOD = re.compile(
    r"\b(?:(?:immuno)?stained|(?:after|upon|following) (?:immuno)?staining) "
    r"(?:for|with|using|by|via|against) (?:the |an? )?(?:\w+ )?"
    r"(?:(?:biomarkers?|markers?|antibod\w+|protein) )*(?:MARKER|ihc|immunohisto\w+)"
    r"(?: (?:biomarker|marker|antibody|protein))?"
    r"|\b(?:MARKER )?(?:immuno)?stain(?:ed)?(?= (?:\w+ )?(?:tissue|sections?|slide|image|patch|sample|"
    r"preparation|micrograph|ihc|immunohisto\w+|specimen|microenvironment))"
    r"|\b(?:MARKER|this|the|a|an|ihc|immunohistochemi\w+) stain(?! \w*(?:ly|ed)\b)(?=\W|$)"
    r"|\b(?:immunohisto\w+|ihc)(?: (?:image|patch|section))?"
    r"|\bimmunostain(?:ing)?(?= for\b| of MARKER)"
)
_OTHERS = re.compile(
    r"\b(?:(?<!class )others|the rest|the remaind\w+|ones)\b"
    r"|\b(?:other|remaining) (?:\w+ )?(?:cells|nuclei|membranes)\b"
)
# `tumour cells are positive in a mostly negative field` and the like are two clauses.
_BREAKS = re.compile(
    r"[.;:,()]|\b(?:while|whereas|but|although|though|however|yet|despite|on an?|against|over an?|where|"
    r"in which|with (?=no\b)|(?:with|within|in) (?:an? |the )?(?=(?:\w+ ){0,2}background)|"
    r"(?:in|among|amid|amidst) (?:an? |the )?(?=(?:\w+ )?(?:negative|unstained)\b)|so)\b"
)
# The background of the stain with the words around it.
_GROUND = re.compile(
    r"(?:\b(?:no|without|absent) (?:\w+ )?staining of )?"
    r"(?:(?!(?:on|over|against|with|within|and|of|in)\b)[\w'’]+ ){0,4}\bbackground\b"
    r"(?:,? (?:is|remains?|remaining|stays?|appears?|has|shows?|staining|being)(?: \w+){0,3})?"
)
_AND = re.compile(r"\b(?:and|with|sparing)\b")

_INTENSITIES = {
    "weak": r"weak\w*|faint\w*|mild\w*|slight\w*|light(?:ly)?|pale|subtl\w+|barely|dim(?:ly)?|low intensity",
    "moderate": r"moderate\w*|intermediate|medium(?! is)",
    "strong": r"strong\w*|intens(?:e|ely|ive|ively)|markedly|dark(?:ly)?|robust\w*|heav(?:y|ily)|vivid\w*|"
    r"high intensity",
}
# Words of a seed from which a rewording may say `strong`.
_STRONG_ENOUGH = re.compile(
    r"\b(?:prominent\w*|pronounced|overexpress\w*|"
    r"high (?:\w+ )?(?:express\w*|levels?|concentration|percentage|density))"
)
_MANY_ENOUGH = re.compile(
    r"\b(?:diffuse\w*|dense\w*|uniform\w*|broad\w*|clusters?|"
    r"high\w* (?:\w+ )?(?:levels?|concentration|density))\b"
)
_SHARES = {
    "few": r"few|rare|rarely|single|isolated|occasional\w*|sparse\w*|minority|a little|traces? of|"
    r"sporadic\w*",
    "some": r"some|several|part of the (?:field|tissue|section)|partly|a number of",
    "many": r"many|numerous|abundant\w*|most|mostly|majority|much of|widespread|predominant\w*|"
    r"high (?:percentage|density|proportion|concentration|number)",
    "all": r"(?:nearly|almost|virtually) (?:all|every)|(?<!not )(?<!at )all(?! active| phases)|every",
}
_FEW_ENOUGH = re.compile(r"\b(?:scattered|focal\w*|minimal\w*|low (?:\w+ )?(?:abundance|number|density))\b")
_ALLOWED = {"strong": _STRONG_ENOUGH, "many": _MANY_ENOUGH, "few": _FEW_ENOUGH}
_LEVELS = {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in {**_INTENSITIES, **_SHARES}.items()}
_SCORES = re.compile(
    r"\d+(?:\.\d+)? ?%|\b[0-3] ?\+(?!\w)|\b(?:h|allred|q)? ?scores?\b|\bgrades?\b|\bpercent\b"
)
_NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?\b(?! ?x\b)")


@dataclass(frozen=True)
class Claims:
    """What a sentence claims.

    markers      biomarkers that it names: canonical names, or the text of one that the taxonomy does not have
    parts        what the sentence names of `PARTS`, `PLACES` and `CELLS` -> what it claims of it
    named        all of these that are named, with or without a claim
    stained      whether it asserts staining anywhere; with words that show other things too, in `shown`;
                 with words that can only mean a positive result, in `asserted`
    unstained    whether it denies staining anywhere
    background   what it claims of the background of the stain
    grades       the intensities and shares that it names
    allowed      grades that it does not name, but that its words allow a rewording to name
    numbers      scores, percentages and other numbers
    """

    markers: frozenset[str]
    parts: dict[str, frozenset[Sign]] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    stained: bool = False
    shown: bool = False
    asserted: bool = False
    unstained: bool = False
    background: frozenset[Sign] = frozenset()
    grades: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()


@dataclass
class _Clause:
    """A clause, what it names, and its sign; `sure` unless it rests on a word that shows other things too."""

    text: str
    found: set[str]
    sign: Sign | None
    sure: bool = True


@cache
def claims(text: str, *, glass: bool = False) -> Claims:
    """The claims of a sentence, by word lists and by the scope of negations within its clauses.

    glass  the sentence is about the slide's empty background, not about tissue
    """
    markers, plain = _without_markers(text.casefold())
    plain = _SUPPRESSOR.sub(" ", re.sub(r"\(\s*(?:MARKER|ihc)\s*\)", " ", plain))
    graded = (
        plain
        if glass
        else re.sub(r"\b(?:on|over|against|and|with|the)?(?: \w+){0,3} background\b.*", " ", plain)
    )
    named = {name for name, pattern in _PATTERNS.items() if pattern.search(plain)}
    background: set[Sign] = set()
    told = _METHOD.sub(" ", _AT_TUMOUR.sub(" ", plain))
    if not glass:
        background = {sign for match in _GROUND.finditer(told) if (sign := _ground(match[0]))}
        told = _GROUND.sub(" , ", told)
    clauses = [clause for clause in _clauses(told) if clause.sign]
    if any(c.sign == "unstained" for c in clauses) and not any(
        c.sign == "stained" and c.sure for c in clauses
    ):
        clauses = [
            clause for clause in clauses if clause.sign == "unstained"
        ]  # `it reveals that none is stained`
    parts: dict[str, set[Sign]] = {}
    for clause in clauses:
        for name in clause.found:
            if clause.sign:
                parts.setdefault(name, set()).add(clause.sign)
    return Claims(
        markers=frozenset(markers),
        parts={name: frozenset(own) for name, own in parts.items()},
        named=frozenset(named),
        stained=any(clause.sign == "stained" and clause.sure for clause in clauses),
        shown=any(clause.sign == "stained" for clause in clauses),
        asserted=any(clause.sign == "stained" and _POSITIVE.search(clause.text) for clause in clauses),
        unstained=any(clause.sign == "unstained" for clause in clauses),
        background=frozenset(background),
        grades=frozenset(name for name, pattern in _LEVELS.items() if pattern.search(graded)),
        allowed=frozenset(name for name, pattern in _ALLOWED.items() if pattern.search(plain)),
        numbers=frozenset(match[0].strip() for match in (*_SCORES.finditer(plain), *_NUMBER.finditer(plain))),
    )


def _without_markers(text: str) -> tuple[set[str], str]:
    """The markers of a text in lower case; the text with MARKER in their place, and spaces for hyphens."""
    for pattern, canonical in _names():
        text = pattern.sub(f" {canonical} ", text)
    found: set[str] = set()
    text = _replaced(text, found)
    found |= {re.sub(r"[\s-]", "", match[0]) for match in _OTHER_MARKERS.finditer(text)}
    text = _OTHER_MARKERS.sub(" MARKER ", text)
    return found, " ".join(re.sub(r"(?<=\S)\s*[-‐‑]\s*(?=\S)", " ", text).split())


def _replaced(text: str, found: set[str]) -> str:
    before, name, after = taxonomy.partition_biomarker(text)
    if name is None:
        return text
    found.add(name)
    return f"{_replaced(before, found)} MARKER {_replaced(after, found)}"


@cache
def _names() -> list[tuple[re.Pattern[str], str]]:
    """The names of biomarkers in text, the longest first."""
    of_stains = {re.escape(stain.name.casefold()): name for name, stain in STAINS.items()}
    names = sorted((_NAMES | of_stains).items(), key=lambda item: -len(item[0]))
    return [(re.compile(rf"(?<![a-z0-9])(?:{name})(?![a-z0-9])"), canonical) for name, canonical in names]


def _clauses(text: str) -> Iterator[_Clause]:
    """The clauses with their signs; a clause on the rest of what is stained (`others are blue`) has none."""
    found = [clause for piece in _BREAKS.split(text) for clause in _split_at_and(piece)]
    for clause, after in zip(found, [*found[1:], None], strict=True):
        denied = after if after is not None and after.sign == "unstained" else None
        elliptic = denied is not None and re.match(r" ?(?:no|not) ", denied.text)
        if clause.sign is None and denied and elliptic and clause.found & set(PARTS):
            # `nuclear but no cytoplasmic staining is seen in tumour cells`
            shared = denied.found - set(PARTS)
            clause.found |= shared
            clause.sign = "stained"
        if clause.sign == "unstained" and _OTHERS.search(clause.text):
            clause.sign = None
        yield clause


def _split_at_and(piece: str) -> Iterator[_Clause]:
    """The clauses of a piece: parts that `and` joins are two where each says something of its own."""
    for match in _AND.finditer(piece):
        left, right = _clause(piece[: match.start()]), _clause(piece[match.end() :])
        if match[0] == "sparing":
            right = _clause(piece[match.start() :])
        # `no T cells and B cells with brown membranes`: one denial of both
        denied = left.sign == "unstained" and _NOT.search(left.text)
        joined = denied and (match[0] == "with" or not (_STAINED.search(left.text) or "MARKER" in left.text))
        if left.sign and right.sign and not joined and (left.sign != right.sign or match[0] == "and"):
            yield from _split_at_and(left.text)
            yield from _split_at_and(right.text)
            return
    yield _clause(piece)


def _ground(text: str) -> Sign | None:
    """What the words around `background` say of it."""
    if _UNSTAINED.search(text) or _DENIES.search(text) or _NOT.search(text) or re.search(r"\bclear\b", text):
        return "unstained"
    return "stained" if _STAINED.search(text) else None


def _clause(text: str) -> _Clause:
    found = {name for name, pattern in _PATTERNS.items() if pattern.search(text)}
    told = _NO_DENIAL.sub(" ", text)
    sure = bool(_STAINED.search(told))
    about = sure or "MARKER" in told or bool(_SHOWN.search(told))
    if _UNSTAINED.search(told) or _LOST.search(told) or (about and _DENIES.search(told)):
        return _Clause(text, found, "unstained")
    if (about or found) and _NOT.search(told):
        return _Clause(text, found, "unstained")
    if sure or _SHOWN.search(told):
        return _Clause(text, found, "stained", sure)
    return _Clause(text, found, None)
