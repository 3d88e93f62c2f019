"""Captions by tissue type and biomarker only: what a biomarker typically shows, whatever a patch shows.

`data.staining: ignore` uses them. They assert staining in most tumours, also where a patch has none.
"""

from __future__ import annotations

from functools import cache

from his2lip.data.captions.biology import PLACES, STAINS, UNKNOWN_STAIN, Pair
from his2lip.data.captions.frames import framed
from his2lip.taxonomy import BIOMARKERS, TISSUES

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
# Findings of single pairs, in place of those of their family (sources: `biology.STAINS`).
OWN_FINDINGS: dict[tuple[str | None, str | None], tuple[str, ...]] = {
    ("Alveoli", "CD68"): (
        "thin septa are blue and macrophages in the air spaces have brown granular cytoplasm",
        "rare brown macrophages lie free in the open air spaces",
    ),
    ("Alveoli", "D2-40"): (
        "type I pneumocytes draw a thin brown line along the air spaces",
        "the septa hold no lymphatic vessels and their alveolar surface is outlined in brown",
    ),
    ("Alveoli", "PanCK"): (
        "pneumocytes line the air spaces as a continuous brown border",
        "the alveolar lining is brown without gaps around open air spaces",
    ),
    ("Immune cells", "FOXP3"): (
        "scattered regulatory T cells have brown nuclei among many blue lymphocytes",
        "single brown nuclei stand out from a crowd of small blue cells",
    ),
    ("Stroma", "FHL2"): (
        "spindle-shaped myofibroblasts have brown cytoplasm between blue fibres",
        "brown myofibroblasts run along the collagen",
    ),
}
BACKGROUND = (
    "bare glass is pale and even, without cells or brown chromogen",
    "no tissue is present and neither blue nor brown is seen",
    "the field lies outside the section and is nearly white",
    "only clean mounting medium is visible, so nothing is stained",
)


@cache
def typical_sentences(tissue: str | None, biomarker: str | None) -> tuple[str, ...]:
    """The captions of a pair of canonical names (or None), without repetition, in a fixed order."""
    stain = STAINS[biomarker] if biomarker else UNKNOWN_STAIN
    of_family = BACKGROUND if tissue == "Background" else FINDINGS[stain.family][tissue]
    findings = OWN_FINDINGS.get((tissue, biomarker), of_family)
    cells, site = stain.carriers(tissue)
    return framed(
        [finding.format(cells=cells, site=site) for finding in findings], PLACES[tissue], stain.name
    )


def typical_bank() -> dict[Pair, tuple[str, ...]]:
    """Captions of every pair of tissue type (or none) and biomarker (or none)."""
    return {(t, b): typical_sentences(t, b) for t in (*TISSUES, None) for b in (*BIOMARKERS, None)}
