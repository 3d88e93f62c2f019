"""Our own captions: what a biomarker stains and how this looks in a tissue type, in varied sentences."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from his2lip.taxonomy import BIOMARKERS, TISSUES

Pair = tuple[str | None, str | None]


class Stain(NamedTuple):
    """What an antibody marks: its name in text, the positive cells, their stained part, the family."""

    name: str
    cells: str
    site: str
    family: str


STAINS: dict[str, Stain] = {
    "CD3": Stain("CD3", "T lymphocytes", "membranes", "immune"),
    "CD20": Stain("CD20", "B lymphocytes", "membranes", "immune"),
    "CD38": Stain("CD38", "plasma cells", "membranes", "immune"),
    "CD68": Stain("CD68", "macrophages", "granular cytoplasm", "immune"),
    "CD8": Stain("CD8", "cytotoxic T cells", "membranes", "immune"),
    "FOXP3": Stain("FOXP3", "regulatory T cells", "nuclei", "immune"),
    "CD34": Stain("CD34", "blood vessels", "endothelium", "vessel"),
    "CD31": Stain("CD31", "blood vessels", "endothelium", "vessel"),
    "D2-40": Stain("D2-40", "lymphatic vessels", "endothelium", "vessel"),
    "FAP": Stain("FAP", "activated fibroblasts", "cytoplasm", "stromal"),
    "SMA": Stain("smooth muscle actin", "myofibroblasts", "cytoplasm", "stromal"),
    "Ki67": Stain("Ki67", "proliferating cells", "nuclei", "nuclear"),
    "P53": Stain("p53", "p53-positive cells", "nuclei", "nuclear"),
    "Cyclin-D1": Stain("cyclin D1", "cycling cells", "nuclei", "nuclear"),
    "CDK4": Stain("CDK4", "cycling cells", "nuclei", "nuclear"),
    "ER": Stain("oestrogen receptor", "hormone-sensitive cells", "nuclei", "nuclear"),
    "PR": Stain("progesterone receptor", "hormone-sensitive cells", "nuclei", "nuclear"),
    "HER2": Stain("HER2", "HER2-positive tumour cells", "membranes", "epithelial"),
    "PanCK": Stain("pan-cytokeratin", "epithelial cells", "cytoplasm", "epithelial"),
    "proSPC": Stain("proSPC", "type II pneumocytes", "cytoplasm", "epithelial"),
    "Cc10": Stain("CC10", "club cells", "cytoplasm", "epithelial"),
    "FHL2": Stain("FHL2", "epithelial cells", "cytoplasm", "epithelial"),
    "Podocin": Stain("podocin", "podocytes", "foot processes", "epithelial"),
}

UNKNOWN_STAIN = Stain("an unnamed antibody", "positive cells", "nuclei", "nuclear")

PLACES: dict[str | None, tuple[str, ...]] = {
    "Alveoli": ("alveoli", "alveolar lung parenchyma"),
    "Background": ("slide background", "an empty slide area"),
    "Immune cells": ("an immune cell infiltrate", "a lymphoid aggregate"),
    "Necrosis": ("necrosis", "a necrotic tumour area"),
    "Other": ("other tissue", "unclassified tissue"),
    "Stroma": ("stroma", "fibrous connective tissue"),
    "Tumor": ("tumour tissue", "a carcinoma field"),
    None: ("a tissue section", "a histology field"),
}

# {cells} and {site} are those of Stain; each finding is a whole sentence without its full stop.
FINDINGS: dict[str, dict[str | None, tuple[str, ...]]] = {
    "immune": {
        "Alveoli": (
            "thin septa are blue and a few {cells} along them have brown {site}",
            "air spaces stand open and rare {cells} in the walls are positive",
            "pneumocytes stay negative beside single {cells} with stained {site}",
        ),
        "Immune cells": (
            "crowded {cells} carry brown {site} around small blue cells",
            "dense sheets of {cells} are positive, their {site} stained brown",
            "stained {site} pick out many {cells} in the infiltrate",
        ),
        "Necrosis": (
            "debris without nuclei takes only smudged brown, with few {cells} at its rim",
            "ghost cells are negative and no crisp {site} of {cells} are left",
            "faint unspecific brown lies on structureless debris instead of on {cells}",
        ),
        "Other": (
            "blood or mucus is seen, and {cells} with brown {site} are hardly found",
            "the material is neither tumour nor stroma and holds stray {cells} at most",
        ),
        "Stroma": (
            "wavy fibres are negative and scattered {cells} between them have brown {site}",
            "spindle cells stay blue while occasional {cells} are positive",
            "loose collagen holds sparse {cells} with stained {site}",
        ),
        "Tumor": (
            "carcinoma nests are blue and single {cells} among them have brown {site}",
            "tumour cells are negative while a few {cells} infiltrate their nests",
            "large pale nuclei surround isolated {cells} with stained {site}",
        ),
        None: (
            "{cells} show brown {site} against blue nuclei",
            "scattered {cells} are positive, their {site} stained brown",
        ),
    },
    "vessel": {
        "Alveoli": (
            "the septa hold {cells} whose {site} is drawn as fine brown lines",
            "delicate brown {site} follows the alveolar walls around open air spaces",
            "{cells} in the thin walls are outlined while pneumocytes stay blue",
        ),
        "Immune cells": (
            "lymphocytes are negative and a few {cells} between them have brown {site}",
            "small blue cells crowd around {cells} with stained {site}",
        ),
        "Necrosis": (
            "collapsed {cells} leave only broken brown traces in the debris",
            "debris is unstained and no intact {site} of {cells} remains",
        ),
        "Other": (
            "blood or mucus is seen with hardly any stained {site}",
            "neither tumour nor stroma is present and {cells} are rare",
        ),
        "Stroma": (
            "{cells} run through the fibres, their {site} stained as thin brown rings",
            "open lumina are lined by brown {site} among negative fibroblasts",
            "branching {cells} stand out in brown from pale collagen",
        ),
        "Tumor": (
            "thin brown {site} of {cells} runs between negative carcinoma nests",
            "tumour cells stay blue while {cells} around them are outlined in brown",
            "slit-like {cells} with stained {site} separate sheets of malignant cells",
        ),
        None: (
            "brown {site} outlines {cells} in otherwise blue tissue",
            "{cells} are marked by a continuous brown lining",
        ),
    },
    "stromal": {
        "Alveoli": (
            "septa show only thin brown strands of {cells} between open air spaces",
            "pneumocytes are negative and few {cells} in the walls have brown {site}",
        ),
        "Immune cells": (
            "lymphocytes are negative, crossed by slender {cells} with brown {site}",
            "small blue cells lie in a loose brown mesh of {cells}",
        ),
        "Necrosis": (
            "debris takes a blurred brown tint and no living {cells} are seen",
            "a brown band of {cells} may border the unstained dead tissue",
        ),
        "Other": (
            "blood or mucus is seen and brown {cells} are scarce",
            "the tissue has no nests or bundles, with little staining of {cells}",
        ),
        "Stroma": (
            "bundles of spindle-shaped {cells} have strongly brown {site}",
            "long brown {cells} run in parallel streams through the collagen",
            "the desmoplastic reaction is rich in {cells} with stained {site}",
        ),
        "Tumor": (
            "carcinoma nests are blue and framed by brown strands of {cells}",
            "tumour cells are negative, with thin bands of positive {cells} between nests",
            "staining spares the malignant cells and marks the {cells} around them",
        ),
        None: (
            "spindle-shaped {cells} have brown {site}",
            "brown strands of {cells} cross the tissue",
        ),
    },
    "nuclear": {
        "Alveoli": (
            "septal nuclei are blue and very few {cells} show brown {site}",
            "resting pneumocytes line open air spaces with almost no positive {site}",
        ),
        "Immune cells": (
            "small lymphocyte nuclei are mostly blue, with some brown {site} of {cells}",
            "a minority of {cells} have brown {site} in the crowded infiltrate",
        ),
        "Necrosis": (
            "dead cells have lost their nuclei and no true staining of {site} is left",
            "debris holds dusty brown fragments instead of intact positive {site}",
        ),
        "Other": (
            "blood or mucus is seen and brown {site} are missing or doubtful",
            "the tissue is neither tumour nor stroma and few {site} are positive",
        ),
        "Stroma": (
            "spindle-shaped nuclei stay blue and only rare {cells} are positive",
            "fibroblasts are negative, with isolated brown {site} along the collagen",
        ),
        "Tumor": (
            "many malignant {site} are brown and the negative ones are blue",
            "{cells} with brown {site} mix with blue nuclei in the carcinoma nests",
            "enlarged tumour {site} stain brown in varying strength",
        ),
        None: (
            "{cells} have brown {site} beside blue negative ones",
            "brown {site} of {cells} stand among blue counterstained nuclei",
        ),
    },
    "epithelial": {
        "Alveoli": (
            "alveolar walls carry scattered {cells} with brown {site}",
            "brown {cells} dot the septa around open air spaces",
        ),
        "Immune cells": (
            "lymphocytes are blue and negative, {cells} being absent or few",
            "small round cells show no staining of {site}",
        ),
        "Necrosis": (
            "debris keeps a smudged brown tint but no intact {cells}",
            "dead tissue without nuclei shows no crisp staining of {site}",
        ),
        "Other": (
            "the tissue is neither tumour nor stroma, with little staining of {site}",
            "blood or mucus is seen and {cells} are rare",
        ),
        "Stroma": (
            "fibroblasts and collagen are negative and {cells} are absent",
            "spindle cells stay blue, in contrast to any {cells} nearby",
        ),
        "Tumor": (
            "cohesive nests hold {cells} with brown {site}",
            "{cells} form sheets whose {site} are stained in varying strength",
        ),
        None: (
            "{cells} have brown {site} against blue nuclei",
            "brown staining of the {site} marks {cells}",
        ),
    },
}
BACKGROUND = (
    "bare glass is pale and even, without cells or brown chromogen",
    "no tissue is present and neither blue nor brown is seen",
    "the field lies outside the section and is nearly white",
    "only clean mounting medium is visible, so nothing is stained",
)

FRAMES = (
    "Immunostaining for {b} in {place}: {finding}.",
    "A {b}-stained patch of {place}; {finding}.",
    "In {place} on {b} IHC, {finding}.",
    "{Place} stained for {b}, where {finding}.",
    "{Finding} ({b} IHC, {place}).",
    "An IHC image of {place}, {b}: {finding}.",
)


@cache
def sentences(tissue: str | None, biomarker: str | None) -> tuple[str, ...]:
    """All template captions of a pair of canonical names (or None), without repetition, in a fixed order."""
    stain = STAINS[biomarker] if biomarker else UNKNOWN_STAIN
    findings = BACKGROUND if tissue == "Background" else FINDINGS[stain.family][tissue]
    lines = []
    for i, finding in enumerate(findings):
        text = finding.format(cells=stain.cells, site=stain.site)
        for j, frame in enumerate(FRAMES):
            place = PLACES[tissue][(i + j) % 2]
            lines.append(
                frame.format(
                    b=stain.name,
                    place=place,
                    Place=place[:1].upper() + place[1:],
                    finding=text,
                    Finding=text[:1].upper() + text[1:],
                )
            )
    return tuple(dict.fromkeys(lines))


def bank() -> dict[Pair, tuple[str, ...]]:
    """Captions of every pair of tissue type (or none) and biomarker (or none)."""
    return {(t, b): sentences(t, b) for t in (*TISSUES, None) for b in (*BIOMARKERS, None)}
