"""What a sentence about staining claims: what is stained and what is not, and where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from his2lip import taxonomy
from his2lip.captioning.additions import doubts, organs
from his2lip.captioning.gradings import allowed, extents, grades, numbers
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
    r"cd3(?:e|[ -]epsilon)": "CD3",
}
# Typographic characters, as language models write them: `isn’t`, `Ki‑67`, `CD3ε`.
_TYPED = str.maketrans({"’": "'", "‐": "-", "‑": "-", "‒": "-", "–": "-", "α": "a", "β": "b", "ε": "e"})
# Markers beyond the taxonomy. Any CD number is one.
_OTHER_MARKERS = re.compile(
    r"(?<![a-z0-9])(?:cd\d+[a-z]?|pd-?l?1|egfr|alk|ros1|ttf-?1|napsin(?: a)?|p16|p21|p27|p40|p63|s-?100|"
    r"sox-?\d+|vimentin|desmin|gfap|synaptophysin|chromogranin|insm1|bcl-?[26]|mum1|msh[26]|mlh1|pms2|"
    r"ck ?\d+|e-?cadherin|gata-?3|psa|her3|caldesmon|calponin|melan-?a|hmb-?45|mdm2|ctla-?4|lag-?3|"
    r"granzyme(?: b)?|cytokeratin ?\d+|pcna|amacr|c-?myc|androgen receptor|"
    r"thyroid transcription factor(?:[ -]?1)?)(?![a-z0-9])"
)

# What can be stained: parts of the cell, tissue types, and kinds of cells, which belong to tissue types.
_TUMOUR = (
    r"tumou?r(?:s|al|ous)?|carcinoma\w*|adenocarcinoma\w*|malignan\w+|neoplas\w+|cancer\w*|lymphoma\w*|"
    r"leuka?emi\w+|sarcoma\w*|melanoma\w*|metasta\w+"
)
_PARTS = {
    "nuclear": r"nucle(?:us|i|ar)|intranuclear",
    "membranous": r"membran\w+|circumferential\w*|cell surfaces?|surfaces? of (?:\w+ )?cells|"
    r"(?:cell|cellular|their) (?:borders?|edges?|outlines?|peripher\w+)",
    "cytoplasmic": r"cytoplasm\w*|intracytoplasmic|cytosol\w*|(?:peri|para|juxta)nuclear",
    "nucleolar": r"nucleol\w+",
    "Golgi": r"golgi",
    "of organelles": r"mitochondri\w+|lysosom\w+|endosom\w+|vacuol\w+|vesicles?|cilia",
    "extracellular": r"extracellular (?=(?:\w+ )?(?:stain|positiv|signal|express|react|label))|"
    r"secret(?:ed|es?|ing|ions?|ory)",
}
_PLACES = {
    "Tumor": _TUMOUR,
    "Stroma": r"strom\w+|\w*fibroblast\w*|connective tissue|collagen\w*|desmoplas\w+",
    "Immune cells": r"immune|lympho\w+|inflammatory|leu[ck]ocyt\w+|[tb] (?:cells?|lymphocytes?)|"
    r"plasma cells?|macrophag\w+|histiocyt\w+|monocyt\w+|regulatory t|ha?ematopoie\w+|"
    r"neutrophil\w*|eosinophils?|granulocyt\w+|(?:mast|nk|natural killer|dendritic) cells?",
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
    "granulocytes": r"neutrophil\w*|eosinophils?|granulocyt\w+",
    "NK cells": r"nk cells?|natural killer\w*",
    "dendritic cells": r"dendritic cells?",
    "mast cells": r"mast cells?",
    "smooth muscle cells": r"smooth muscle cells?|pericytes?",
    "giant cells": r"giant cells?|granulom\w+",
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
    r" (?:(?!stain)\w+ ){0,6}?(?<!\bin )blue(?! in\b| (?:\w+ )?(?:stain|signal|colou?ration|positiv))|blue is"
)
_UNSTAINED = re.compile(
    rf"\b(?:negativ\w+|unstained|un(?:react|label|colou?r)\w*|non ?(?:immuno)?(?:reactiv|stain)\w*|"
    rf"colou?rless|only (?:the )?(?:blue )?(?:counterstain|ha?ematoxylin)|counterstain only|null|{_BLUE})\b"
)
_DENIES = re.compile(
    r"\b(?:without|lack(?:s|ing|ed)?|absent|absence|devoid|void of|free (?:of|from)|"
    r"fail(?:s|ed|ing)?|missing|un(?:detect|express|affect)\w*|non ?express\w*|invisible|"
    r"exclud\w+|rather than|instead of|hardly|scarcely|seldom|cannot|zero|clean|nothing|"
    r"disappear\w*|vanish\w*|unseen|untrue|refut\w+|disprov\w+|ruled out|den(?:y|ies|ied)|"
    r"suppressed|inhibited|abolished|abrogated|silenced|quenched|"
    r"avoid(?:s|ed|ing)?|escap(?:e|es|ed|ing)|resist(?:s|ed|ing)?|bypass(?:es|ed|ing)?|evad(?:e|es|ed|ing))\b"
)
# A denial of a denial, such as `no cell lacks staining`: what it asserts, a rewording can say without it.
_TWICE = re.compile(
    r"\b(?:no|not|none|never|nowhere|cannot|hardly|scarcely)\b"
    r"(?: (?!(?:but|and|or|nor|with|while)\b)[\w']+){0,6}? "
    r"(?:no|lack(?:s|ing|ed)?|without|absen(?:t|ce)|missing|devoid|free (?:of|from)|negative|unstained|"
    r"unreactive|fail(?:s|ed)?|spared|escap(?:e|es|ed))\b(?! or\b)"
    r"|\b(?:lack(?:s|ing)?|without|absence|absent|devoid|free (?:of|from)|negative|unstained)\b"
    r"(?: (?!(?:but|and|or|nor|while)\b)[\w']+){0,8}? (?:ruled out|(?:is|are|was|were) (?:not|never) "
    r"(?:seen|found|present|observed|detected|identified|evident)"
    r"|(?:is|are|was|were) (?:absent|missing|lacking|rare|hard to find)"
    r"|(?:do|does|did) not (?:occur|exist))\b"
    r"|\b(?:not|cannot|can't) be (?:denied|doubted|ruled out|excluded)\b"
    r"|\bnot (?:a few|un(?:common|usual)\w*|infrequent\w*|rare\w*|unstained|negative)\b"
    r"|\b(?:absent|missing|lacking) only\b|\bnever (?:absent|missing|negative)\b"
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
# Denials of other things than staining: `lacking a specific organ or structure identification`.
_OTHER_DENIAL = re.compile(
    r"\b(?:without|lack(?:s|ing)?|absence of)"
    r" (?:(?!\w*(?:stain|positiv|express|react|signal|label|brown|nucle|cytoplas|membran)|MARKER)\w+ ){0,5}?"
    r"(?:identification|identity|organi[sz]ation|architecture|features?|details?|classification|"
    r"specificity)\b"
)
# On the slide's background, a denial of tissue is one of staining.
_NO_TISSUE = re.compile(
    r"\b(?:non ?cellular|acellular|empty|featureless|blank)\b"
    r"|\b(?:no|without|lack(?:s|ing)?(?: of)?|absence of|devoid of|free of) (?:\w+ ){0,5}?"
    r"(?:tissues?|cells?|structures?|elements?|components?|material)\b"
)
# Words that assert staining, and those that do where the sentence is about staining at all.
_STAINED = re.compile(
    r"\b(?:(?:immuno)?stain(?:s|ed|ing)?|positiv\w+|brown\w*|(?:immuno)?react\w+|(?:over)?express\w*|labell?\w*|"
    r"decorat\w+|chromogen|dab|signal|colou?ration|tint\w*|presence of (?:\w+ ){0,2}MARKER)\b"
)
_POSITIVE = re.compile(
    r"\b(?:positiv\w+|brown\w*|(?:immuno)?reactiv\w+|(?:over)?express\w*|decorat\w+|"
    r"presence of (?:\w+ ){0,2}MARKER)\b"
)
_SHOWN = re.compile(
    r"\b(?:mark(?:s|ed|ing)|highlight\w*|outlin\w+|detect\w+|visuali[sz]\w+|delineat\w+|identif\w+|"
    r"picks? out|(?:shows?|contains?|carr(?:y|ies)|has|have|bears?) (?:\w+ )?MARKER|"
    r"present|presence|evident|reveal\w+)\b"
)
# The name of the method, which says nothing about the result.
_IHC = r"(?:ihc|immunohisto\w+)"
# `faintly stained tissue` is a result.
_NO_RESULT = "".join(
    f"(?<!{how}ly )"
    for how in (
        "faint",
        "weak",
        "moderate",
        "strong",
        "intense",
        "prominent",
        "dense",
        "dark",
        "mild",
        "partial",
        "diffuse",
        "focal",
        "uniform",
        "distinct",
        "clear",
        "vivid",
        "heavi",
        "robust",
    )
)
_METHOD = re.compile(
    rf"{_NO_RESULT}\b(?:(?:immuno)?stained|(?:after|upon|following) (?:immuno)?staining) "
    r"(?:for|with|using|by|via|against) (?:the |an? )?(?:\w+ )?"
    r"(?:(?:biomarkers?|markers?|antibod\w+|protein) )*(?:MARKER|ihc|immunohisto\w+|h ?& ?e\b)"
    r"(?: (?:biomarker|marker|antibody|protein))?"
    rf"|\b(?:under|through|via|by|using|after) (?:the |an? )?{_IHC} staining"
    rf"|\bwith {_IHC} staining(?! (?:for|of|in)\b)|(?:^ ?|\b(?:the|this) ){_IHC} staining(?= of\b)"
    r"|\bstained for (?:\w+ )?(?:analysis|examination|evaluation|assessment|study)\b"
    rf"|{_NO_RESULT}\b(?:MARKER )?(?:immuno)?stain(?:ed)?"
    r"(?= (?:\w+ )?(?:tissue|sections?|slide|image|patch|sample|preparation|micrograph|histopath\w+|"
    r"histolog\w+|ihc|immunohisto\w+|specimen|microenvironment))"
    r"|\b(?:MARKER|this|the|a|an|ihc|immunohistochemi\w+) stain(?! \w*(?:ly|ed)\b)(?=\W|$)"
    r"|\bh ?& ?e(?: stain(?:ed|ing)?)?\b|\b(?:immunohisto\w+|ihc)(?: (?:image|patch|section))?"
    r"|\bimmunostain(?:ing)?(?= for\b| of MARKER)"
)
# `T cells stained for CD3` may be the method or the result.
_CELLS_STAINED = re.compile(
    r"\b(?:cells?|\w+cytes?|macrophages?|\w*fibroblasts?|nucle(?:i|us)|membranes?|vessels?|capillaries)"
    r" (?:(?:is|are|\w+ly) )?(?:immuno)?stained (?:for|with|by) (?:the )?(?:(?:biomarker|marker) )?MARKER"
)
# `partly positive and partly negative tumour`, `positive and negative regions`: both are said of the same.
_BOTH = re.compile(
    r"\b(?:(?:partial(?:ly)?|partly) (?:positiv\w+|stained|negativ\w+|unstained)"
    r" (?:and|or) (?:partial(?:ly)?|partly) (?:positiv\w+|stained|negativ\w+|unstained)"
    r"|(?:positivity and (?:MARKER )?negativity|negativity and (?:MARKER )?positivity)"
    r"|(?:positive and (?:MARKER )?negative|stained and unstained|negative and (?:MARKER )?positive)"
    r"(?= (?:regions?|areas?|zones?|parts?|cells|nuclei|staining|patterns?)\b))"
)
# Words that restrict what is stained to a part of it, so that the rest of it is not.
_RESTRICTED = re.compile(
    r"\b(?:few|only(?! (?:positiv|stain))|limited|restricted|partial\w*|partly|patchy|"
    r"focal\w*|heterogen\w*|mixed|variab\w+|"
    r"varied|selective\w*|sparse\w*|scattered|sporadic\w*|isolated|minority|low number|minimal|"
    r"small (?:number|subset|fraction|proportion|part)|"
    r"(?:certain|specific|some) (?:areas?|regions?|parts?|zones?))\b"
)
# Words by which a clause that denies staining leaves a part for another clause to assert.
_MOSTLY = re.compile(
    r"\b(?:(?:predominantly|mostly|mainly|largely|primarily|partial(?:ly)?|partly) (?:negative|unstained)|"
    r"not (?:all|every))\b"
)
# `predominantly negative, with minimal expression` asserts nothing.
_SCARCELY = re.compile(
    rf"\b(?:minimal(?:ly)?|low|little|negligible)(?: to no| or no)? (?:\w+ ){{0,2}}{_RESULT}"
)
_OTHERS = re.compile(
    r"\b(?:(?<!class )others|the rest|the remaind\w+|ones)\b"
    r"|\b(?:other|remaining) (?:\w+ )?(?:cells|nuclei|membranes)\b"
)
# `tumour cells are positive in a mostly negative field` and the like are two clauses.
_CONJUNCTIONS = (
    r"[.;:,()]|\b(?:while|whereas|but|although|though|however|yet|despite|on an?|against|over an?|where|"
    r"in which|with (?=no\b)|so|"
    r"(?:in|among|amid|amidst) (?:an? |the )?(?=(?:\w+ )?(?:negative|unstained)\b))\b"
)
_BREAKS_ON_GLASS = re.compile(_CONJUNCTIONS)
_BREAKS = re.compile(rf"{_CONJUNCTIONS}|\b(?:with|within|in) (?:an? |the )?(?=(?:\w+ ){{0,2}}background)\b")
# Commas between adjectives join what they qualify: `tumour cells show strong, diffuse nuclear staining`.
_QUALITY = (
    r"(?:weak|faint|mild|slight|pale|moderate|strong|intense|robust|dark|heavy|vivid|brown|distinct|"
    r"diffuse|focal|patchy|scattered|granular|(?:in)?complete|uniform|(?:homo|hetero)geneous|linear|"
    r"circumferential|widespread|punctate|fine|coarse|continuous|variable)"
)
_COMMA_OF_QUALITIES = re.compile(
    rf"\b({_QUALITY}), (?:and )?"
    rf"(?=(?:\w+ly )?(?:{_QUALITY}|nuclear|membranous|membrane|cytoplasmic|endothelial|staining|signal)\b)"
)
# A denial that ends in the first item of a list, or in an adjective of its last.
_ITEM = re.compile(r"\b(?:no|without|lack(?:s|ing)?|(?:absence|lack|devoid|free) of)(?: \w+){1,2} ?$")
_ALTERNATIVE = re.compile(
    r"\bor(?: an?)? \w+ ?$"
    r"|\b(?:no|without|lacks?|lacking|(?:absence|lack) of)(?: an?| any)? (?:diffuse|uniform|strong|weak|"
    r"faint|intense|moderate|distinct|clear|focal|patchy|granular|complete|dark|brown) ?$"
)
# The background of the stain with the words around it.
_GROUND = re.compile(
    r"(?:\b(?:no|without|absent) (?:\w+ )?staining of )?"
    r"(?:\b(?!(?:on|over|against|with|within|and|of|in)\b)[\w'’]+ ){0,4}\bbackground\b(?: of the \w+| that)?"
    r"(?:,? (?:is|remain(?:s|ing)?|stays?|appears?|has|shows?|staining|being)\b(?: \w+){0,3})?"
)
_EXCEPT = re.compile(
    r",? ?\b(?:except(?:ing)?(?: (?:for|in|of))?|apart from|aside from|save for|"
    r"(?:everything|anything|all) but)\b"
)
_AND = re.compile(
    r"\b(?:and|with|sparing|confirm\w*|indicat\w+|suggest\w*|signif(?:y|ies|ying)|point(?:s|ing)? to)\b"
)

# What a clause asserts of one part and denies of another: `membranous without nuclear staining`.
_CONTRAST = re.compile(
    r"\b(?:and (?:no|not|absent from|absent in|without)|without|rather than|instead of|lacking)\b"
)

# `many cells around the tumour`: of what lies beside the tissue type.
_ASIDE = re.compile(
    r"\b(?:cells?|nuclei|nucleus|membranes?|staining|signal) (?:\w+ )?"
    r"(?:around|outside|beyond|next to|adjacent to|far from|away from) (?:the |a |an )?(?:\w+ )?"
    rf"(?:{_TUMOUR})(?! (?:\w+ )?(?:cells?|nests?|nucle\w+|islands?))"
)


@dataclass(frozen=True)
class Claims:
    """What a sentence claims.

    markers      biomarkers that it names: canonical names, or the text of one that the taxonomy does not have
    parts        what the sentence names of `PARTS`, `PLACES` and `CELLS` -> what it claims of it
    named        all of these that are named, with or without a claim
    stained      whether it asserts staining anywhere; with words that show other things too, in `shown`;
                 with words that can only mean a positive result, in `asserted`; with words that may name the
                 method instead, in `perhaps`
    unstained    whether it denies staining anywhere
    restricted   tissue types of which it asserts staining, only in clauses that say that a part is stained
    mixed        the tissue type of which it both asserts and denies staining: `mostly negative, a few cells
                 positive`; none where there are two, and never another kind of part
    background   what it claims of the background of the stain
    grades       the intensities and shares that it names
    allowed      grades that it does not name, but that its words allow a rewording to name
    numbers      scores, percentages and other numbers, each in one spelling, such as `<30%`
    extents      patterns of staining that it names of those in `OPPOSITE`
    doubts       what it says of staining or tumour instead: an artefact, pigment, normal, equivocal
    organs       organs and kinds of tumours that it names
    aside        whether it is about what lies beside a tumour
    """

    markers: frozenset[str]
    parts: dict[str, frozenset[Sign]] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    stained: bool = False
    shown: bool = False
    asserted: bool = False
    perhaps: bool = False
    unstained: bool = False
    restricted: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    background: frozenset[Sign] = frozenset()
    grades: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    extents: frozenset[str] = frozenset()
    doubts: frozenset[str] = frozenset()
    organs: frozenset[str] = frozenset()
    aside: bool = False


@dataclass
class _Clause:
    """A clause, what it names, and its sign; `sure` unless it rests on a word that shows other things too."""

    text: str
    found: set[str]
    sign: Sign | None = None
    sure: bool = True


@cache
def claims(text: str, *, glass: bool = False) -> Claims:
    """The claims of a sentence, by word lists and by the scope of negations within its clauses.

    glass  the sentence is about the slide's empty background, not about tissue
    """
    markers, plain = _without_markers(text.translate(_TYPED).casefold().replace("backdrop", "background"))
    plain = _SUPPRESSOR.sub(" ", re.sub(r"\(\s*(?:MARKER|ihc)\s*\)", " ", plain))
    graded = (
        plain
        if glass
        else re.sub(r"\b(?:on|over|against|and|with|the)?(?: \w+){0,3} background\b.*", " ", plain)
    )
    named = {name for name, pattern in _PATTERNS.items() if pattern.search(plain)}
    background: set[Sign] = set()
    told = _METHOD.sub(" ", _AT_TUMOUR.sub(" ", plain))
    if glass:
        told = _NO_TISSUE.sub(" unstained ", told)
    else:
        told = _OTHER_DENIAL.sub(" ", told)
        background = {sign for match in _GROUND.finditer(told) if (sign := _ground(match[0]))}
        told = _GROUND.sub(" , ", told)
    clauses = [clause for clause in _clauses(told, glass=glass) if clause.sign]
    scarcely = any(clause.sign == "stained" and _SCARCELY.search(clause.text) for clause in clauses)
    if any(clause.sign == "unstained" for clause in clauses):
        clauses = [c for c in clauses if c.sign == "unstained" or not _SCARCELY.search(c.text)]
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
    stained = any(clause.sign == "stained" and clause.sure for clause in clauses)
    unstained = any(clause.sign == "unstained" for clause in clauses)
    levels = grades(graded)
    return Claims(
        markers=frozenset(markers),
        parts={name: frozenset(own) for name, own in parts.items()},
        named=frozenset(named),
        stained=stained,
        shown=scarcely or any(clause.sign == "stained" for clause in clauses),
        asserted=any(clause.sign == "stained" and _POSITIVE.search(clause.text) for clause in clauses),
        perhaps=bool(_CELLS_STAINED.search(plain)),
        unstained=unstained,
        mixed=_mixed(clauses),
        restricted=frozenset() if levels & {"many", "all"} else _restricted(clauses, named & set(PLACES)),
        background=frozenset(background),
        grades=levels,
        allowed=allowed(plain, levels, denied=unstained and not stained),
        numbers=numbers(plain),
        extents=extents(plain),
        doubts=doubts(plain),
        organs=organs(plain),
        aside=bool(_ASIDE.search(plain)),
    )


def _mixed(clauses: list[_Clause]) -> frozenset[str]:
    """The tissue type that is asserted and denied, or denied `mostly` beside what names no other place."""
    asserting = [c.found & set(PLACES) for c in clauses if c.sign == "stained" and c.sure]
    found: set[str] = set()
    for clause in clauses:
        if clause.sign == "unstained":
            mostly = _MOSTLY.search(clause.text) and asserting
            found |= {
                place
                for place in clause.found & set(PLACES)
                if any(place in own for own in asserting)
                or (mostly and all(own <= {place} for own in asserting))
            }
    return frozenset(found) if len(found) == 1 else frozenset()


def _restricted(clauses: list[_Clause], places: set[str]) -> frozenset[str]:
    """The tissue types that are asserted, each time within words such as `only a few`.

    places  tissue types that the sentence names; where it is one, clauses that name none are about it
    """
    alone = places if len(places) == 1 else set()
    asserting = [
        (clause.found & set(PLACES) or alone, bool(_RESTRICTED.search(clause.text)))
        for clause in clauses
        if clause.sign == "stained"
    ]
    found = {place for own, _ in asserting for place in own}
    return frozenset(place for place in found if all(part for own, part in asserting if place in own))


def _without_markers(text: str) -> tuple[set[str], str]:
    """The markers of a text in lower case; the text with MARKER in their place, and spaces for hyphens."""
    for pattern, canonical in _names():
        text = pattern.sub(f" {canonical} ", text)
    found: set[str] = set()
    text = _replaced(text, found)
    found |= {re.sub(r"[\s-]", "", match[0]) for match in _OTHER_MARKERS.finditer(text)}
    text = _OTHER_MARKERS.sub(" MARKER ", text)
    return found, " ".join(re.sub(r"(?<=\S)\s*-\s*(?=\S)", " ", text).split())


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


def _clauses(text: str, *, glass: bool) -> Iterator[_Clause]:
    """The clauses with their signs; a clause on the rest of what is stained (`others are blue`) has none."""
    breaks = _BREAKS_ON_GLASS if glass else _BREAKS
    text = _COMMA_OF_QUALITIES.sub(r"\1 ", text)
    text = re.sub(r",? ?\bunlike\b", " but not", text)  # `nuclei are stained, unlike membranes`
    if (match := _EXCEPT.search(text)) and not (
        _UNSTAINED.search(before := text[: match.start()]) or _NOT.search(before)
    ):
        text = f"{before} but not {text[match.end() :]}"  # `tumour cells are stained except for their nuclei`
    found = [clause for piece in breaks.split(text) for clause in _split_at_and(piece)]
    _continue_denials(found)
    for clause, after in zip(found, [*found[1:], None], strict=True):
        denied = after if after is not None and after.sign == "unstained" else None
        elliptic = denied is not None and re.match(r" ?(?:no|not) ", denied.text)
        excepted = (
            denied and denied.text.startswith(" not ") and _begins(_Clause(denied.text[4:], denied.found))
        )
        if clause.sign is None and denied and excepted and clause.found - denied.found:
            clause.sign = "stained"  # `tumour cells but not fibroblasts are stained`
        if clause.sign is None and denied and elliptic and clause.found & set(PARTS):
            # `nuclear but no cytoplasmic staining is seen in tumour cells`
            shared = denied.found - set(PARTS)
            clause.found |= shared
            clause.sign = "stained"
        if clause.sign == "unstained" and _OTHERS.search(clause.text):
            clause.sign = None
        yield clause


def _continue_denials(clauses: list[_Clause]) -> None:
    """Denies all that a denial enumerates: `no nuclear, membranous or cytoplasmic staining`."""
    before = ""  # the denial that this clause may continue
    for clause in clauses:
        joined = re.match(r" ?(\w+ )?(?:or|nor) ", clause.text)
        listed = (joined and (not joined[1] or _ITEM.search(before))) or _ALTERNATIVE.search(before)
        if clause.sign == "stained" and before and listed:
            clause.sign = "unstained"
        open_end = clause.sign is None and (before or _ALTERNATIVE.search(clause.text))
        before = clause.text if clause.sign == "unstained" or open_end else ""


def _split_at_and(piece: str) -> Iterator[_Clause]:
    """The clauses of a piece: parts that `and` joins are two where each says something of its own."""
    if _BOTH.search(piece):
        found = _clause(piece).found
        yield from (_Clause(piece, found, "stained"), _Clause(piece, set(found), "unstained"))
        return
    for match in _CONTRAST.finditer(piece):
        left, right = _clause(piece[: match.start()]), _clause(piece[match.end() :])
        if left.sign == "unstained" or _DENIES.search(left.text):
            continue
        denied = left.found & set(PARTS) and right.found & set(PARTS) - left.found
        if denied:
            left.found |= right.found - set(PARTS)
        elif left.found and match[0] not in ("without", "lacking") and _begins(right):
            denied = right.found
        if denied:
            left.sign = "stained"
            yield from (left, _Clause(piece[match.start() :], set(denied), "unstained"))
            return
    for match in _AND.finditer(piece):
        left, right = _clause(piece[: match.start()]), _clause(piece[match.end() :])
        if match[0] == "sparing":
            right = _clause(piece[match.start() :])
        # `no T cells and B cells with brown membranes`: one denial of both
        denial = left.sign == "unstained" and _NOT.search(left.text)
        joined = denial and (match[0] == "with" or not (_STAINED.search(left.text) or "MARKER" in left.text))
        if left.sign and right.sign and not joined and (left.sign != right.sign or match[0] == "and"):
            yield from _split_at_and(left.text)
            yield from _split_at_and(right.text)
            return
    yield _clause(piece)


def _begins(clause: _Clause) -> bool:
    """Whether a clause begins with something that can be stained."""
    return any(
        re.match(rf" ?(?:(?:in|of|from) )?(?:the )?(?:{_NAMED[name]})\b", clause.text)
        for name in clause.found
    )


def _ground(text: str) -> Sign | None:
    """What the words around `background` say of it."""
    if _UNSTAINED.search(text) or _DENIES.search(text) or _NOT.search(text) or re.search(r"\bclear\b", text):
        return "unstained"
    return "stained" if _STAINED.search(text) else None


def _clause(text: str) -> _Clause:
    found = {name for name, pattern in _PATTERNS.items() if pattern.search(text)}
    told = _NO_DENIAL.sub(" ", text)
    if _TWICE.search(told):
        return _Clause(text, found, None)
    sure = bool(_STAINED.search(told))
    about = sure or "MARKER" in told or bool(_SHOWN.search(told))
    if _UNSTAINED.search(told) or _LOST.search(told) or (about and _DENIES.search(told)):
        return _Clause(text, found, "unstained")
    if (about or found) and _NOT.search(told):
        return _Clause(text, found, "unstained")
    if sure or _SHOWN.search(told):
        return _Clause(text, found, "stained", sure)
    return _Clause(text, found, None)
