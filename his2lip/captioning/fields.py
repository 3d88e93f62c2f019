"""The fields of a seed: prefilled from the staining band and the biomarker, and as a sentence."""

from __future__ import annotations

from his2lip.captioning.records import Fields
from his2lip.data.captions import PLACES, STAINS
from his2lip.data.shards import Staining

INTENSITIES = ("no", "weak", "moderate", "strong")  # the words of the intensities 0 to 3
SHARES: dict[Staining, str] = {"negative": "no", "weak": "a few", "moderate": "some", "strong": "many"}
# How the stained part of `data.captions.STAINS` is named as a compartment; other parts are kept as they are.
_COMPARTMENTS = {
    "nuclei": "nuclear",
    "membranes": "membranous",
    "cytoplasm": "cytoplasmic",
    "thin cytoplasm": "cytoplasmic",
    "granular cytoplasm": "cytoplasmic",
    "cytoplasm and nuclei": "cytoplasmic and nuclear",
    "endothelium": "endothelial",
}
COMPARTMENTS = ("nuclear", "membranous", "cytoplasmic", "cytoplasmic and nuclear", "endothelial")
PATTERNS = ("diffuse", "focal", "patchy", "scattered", "granular", "complete", "incomplete")


def prefilled(tissue: str | None, biomarker: str | None, staining: Staining | None) -> Fields:
    """Where the biomarker lies in this tissue type, and how much of it the band says.

    The intensity is stated for negative patches only: a stained area does not tell how strong the stain is.
    """
    intensity = 0 if staining == "negative" else None
    stain = STAINS.get(biomarker or "")
    if stain is None or tissue == "Background" or not stain.has_carriers(tissue):
        return Fields(share=staining, intensity=intensity)
    cells, site = stain.carriers(tissue)
    return Fields(
        compartment=_COMPARTMENTS.get(site, site),
        cells=cells,
        share=staining,
        intensity=intensity,
        pattern="granular" if site.startswith("granular") and staining != "negative" else "",
    )


def sentence(tissue: str | None, biomarker: str | None, fields: Fields) -> str:
    """The sentence that the fields of a seed state about a tissue type and a biomarker (canonical names).

    Negative fields, by share or intensity, give a sentence that denies staining, whatever the pattern says.
    Without share, intensity and pattern, it says nothing about staining.
    """
    place = PLACES[tissue][0]
    stain = STAINS.get(biomarker or "")
    start = f"{place[:1].upper()}{place[1:]} stained for {stain.name if stain else 'an unnamed antibody'}"
    compartment, cells, pattern, background = (
        part.strip() for part in (fields.compartment, fields.cells, fields.pattern, fields.background)
    )
    if fields.share is None and fields.intensity is None and not pattern:
        return f"{start}{f'; {background}' if background else ''}."  # nothing is stated about staining
    negative = fields.share == "negative" or fields.intensity == 0
    grade = "" if negative or fields.intensity is None else INTENSITIES[fields.intensity]
    kind = " ".join(part for part in ("" if negative else pattern, compartment) if part)
    how = ", ".join(part for part in (grade, kind) if part) if pattern else f"{grade} {kind}".strip()
    staining = f"{how} staining".strip()
    if negative:
        finding = f"no {cells} with {staining} are seen" if cells else f"no {staining} is seen"
    elif cells:
        share = "" if fields.share is None else f"{SHARES[fields.share]} "
        finding = f"{share}{cells} show {staining}"
    elif fields.share is None:
        finding = f"{staining} is seen"
    else:
        finding = f"{staining} covers {_AREAS[fields.share]}"
    return f"{start}: {finding}{f'; {background}' if background else ''}."


# Of a field without cells that are named.
_AREAS: dict[Staining, str] = {
    "negative": "none of the field",
    "weak": "a small part of the field",
    "moderate": "a moderate part of the field",
    "strong": "much of the field",
}
