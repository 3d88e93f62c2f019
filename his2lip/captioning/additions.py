"""What a sentence adds that a stain does not show: doubts, behaviour, organs and kinds of tumours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from his2lip.captioning.gradings import found_in

# Words by which what is stained would be no staining for the biomarker, no tumour, or not for certain; and
# what a stain does not show: behaviour, grade, treatment, genotype, whose tissue it is.
_DOUBTS = {
    "artefact": r"arti?efacts?\w*|artifacts?\w*|artefactual|artifactual",
    "nonspecific": r"(?:non|un) ?specific (?:\w+ )?(?:stain\w*|signal|reacti\w+)",
    "pigment": r"pigments?|melanin|ha?emosiderin|anthracosis",
    "expected only": r"would (?:be (?:expected|anticipated)|show|stain)|mistaken for",
    "normal": r"normal|benign|healthy|non ?(?:neoplastic|malignant|tumou?r\w*)",
    "equivocal": r"equivocal\w*|borderline|indeterminate|inconclusive|questionable|doubtful\w*|"
    r"unconvincing\w*|(?:not|hardly|barely|less than) (?:\w+ )?(?:convincing|certain|definite)|uncertain\w*|"
    r"ambiguous\w*",
    "aggressive": r"aggressiv\w*|indolent|(?:high|low|intermediate) grade|"
    r"(?:poorly|well|moderately|un) ?differentiated|anaplastic|dysplas\w+|atypi\w+|"
    r"invasive|in situ|metasta\w+",
    "prognostic": r"prognos\w+|surviv\w+",
    "treated": r"(?:un)?treated|\w*therap\w+|\w{4,}mab",
    "mutated": r"wild type|mutant|amplifi\w+",
    "in another state": r"apoptotic|dying|cytotoxic|na[iï]ve|memory|effector|exhausted|intraepithelial",
    "of another colour": r"red|green|purple|pink|yellow|orange|\w*fluoresc\w+",
    "of a patient or an animal": r"patients?|child(?:ren)?|(?:wo)?m[ae]n|(?:fe)?males?|"
    r"mouse|mice|murine|rats?",
    "marginal": r"margins?|(?:invasive|invasion|tumou?r) (?:front|edge|periphery|cent(?:re|er)|core)",
    "no longer so": r"no longer|any ?more",
    "an exception": r"(?:no|not|none|never|nothing|without|lack\w*|absen\w+|negativ\w+|unstained)\b"
    r"[^.;]*\b(?:except\w*|apart from|aside from|save for|other than)",
}
# Organs of which tissue can be, and kinds of tumours. The tissue types of the shards are of any.
_ORGANS = {
    "lung": r"lungs?|pulmonary|bronch\w+",
    "breast": r"breasts?|mammary|(?:intra)?ductal carcinomas?|lobular carcinomas?",
    "bowel": r"bowels?|intestin\w+|colon(?:ic|s)?|colorect\w+|rect(?:um|al)|duoden\w+|ile(?:um|al)",
    "stomach": r"stomach|gastric",
    "oesophagus": r"o?esophag\w+",
    "liver": r"liver|hepat\w+",
    "pancreas": r"pancrea\w+",
    "kidney": r"kidneys?|renal|glomerul\w+",
    "bladder": r"bladder|urothel\w+",
    "prostate": r"prostat\w+",
    "uterus": r"uter(?:us|ine)|endometri\w+|cervi(?:x|cal)",
    "ovary": r"ovar(?:y|ies|ian)",
    "testis": r"test(?:is|es|icular)|seminom\w+",
    "skin": r"skin|cutaneous|epiderm\w+|derm(?:is|al)",
    "brain": r"brain|cerebr\w+|cerebell\w+|gliom\w+|glioblastom\w+",
    "thyroid": r"thyroid(?! transcription)",
    "head and neck": r"head and neck|oral cavity|laryn\w+|pharyn\w+|tongue|salivary",
    "lymph node": r"lymph nodes?|nodal|tonsil\w*|spleen|splenic|thym(?:us|ic|om\w+)",
    "bone": r"bone",
    "adenocarcinoma": r"adenocarcinoma\w*|glands?|glandular|acin(?:i|ar|us)|papillary",
    "squamous cells": r"squamous|epidermoid",
    "small cell carcinoma": r"(?<!non )small cell(?= (?:\w+ )?(?:carcinoma|cancer|tumou?r))",
    "non-small cell carcinoma": r"non small cell",
    "large cell carcinoma": r"large cell(?= (?:\w+ )?(?:carcinoma|cancer|tumou?r))",
    "sarcoma": r"\w*sarcoma\w*",
    "lymphoma": r"lymphoma\w*|hodgkin\w*|leuka?emi\w+|myeloma\w*",
    "melanoma": r"melanoma\w*",
    "mesothelioma": r"mesotheliom\w+",
    "neuroendocrine tumour": r"neuroendocrin\w+|carcinoids?",
    "germ cell tumour": r"germ cells?|teratoma\w*",
}


def _compiled(lists: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in lists.items()}


_DOUBTFUL, _ORGAN = _compiled(_DOUBTS), _compiled(_ORGANS)


def doubts(text: str) -> frozenset[str]:
    """What the text, in lower case without hyphens, says of staining or tumour instead of what is stained."""
    return found_in(_DOUBTFUL, text)


def organs(text: str) -> frozenset[str]:
    """The organs and kinds of tumours that it names."""
    return found_in(_ORGAN, text)
