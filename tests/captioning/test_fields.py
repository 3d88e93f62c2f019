"""The fields of a seed, and the sentence that they generate."""

import pytest

from his2lip.captioning.fields import prefilled, sentence
from his2lip.captioning.records import Fields
from his2lip.data.captions import STAINS
from his2lip.data.shards import STAININGS
from his2lip.taxonomy import BIOMARKERS, TISSUES


def test_fields_are_prefilled_from_the_band_and_from_where_the_marker_lies() -> None:
    fields = prefilled("Tumor", "CD68", "weak")
    assert fields == Fields(compartment="cytoplasmic", cells="macrophages", share="weak", pattern="granular")
    assert prefilled("Alveoli", "D2-40", "strong").cells == "type I pneumocytes along the air spaces"
    assert prefilled("Tumor", "Ki67", "negative").intensity == 0
    assert prefilled("Necrosis", "ER", "strong") == Fields(share="strong")  # no cells there carry ER


def test_a_sentence_states_every_field() -> None:
    fields = Fields(
        compartment="nuclear",
        cells="tumour cells",
        share="strong",
        intensity=2,
        pattern="patchy",
        background="the stroma is negative",
    )
    assert sentence("Tumor", "Ki67", fields) == (
        "Tumour tissue stained for Ki67: many tumour cells show moderate, patchy nuclear staining; "
        "the stroma is negative."
    )


@pytest.mark.parametrize(
    "fields", [Fields(share="negative", intensity=3), Fields(share="strong", intensity=0)]
)
def test_negative_fields_deny_staining(fields: Fields) -> None:
    told = fields.model_copy(update={"cells": "tumour cells", "compartment": "nuclear", "pattern": "diffuse"})
    assert sentence("Tumor", "P53", told) == (
        "Tumour tissue stained for p53: no tumour cells with nuclear staining are seen."
    )
    assert sentence("Tumor", "P53", fields) == "Tumour tissue stained for p53: no staining is seen."


def test_every_key_of_the_taxonomy_has_a_sentence_of_its_own() -> None:
    for band in (*STAININGS, None):
        sentences = {sentence(t, b, prefilled(t, b, band)) for t in TISSUES for b in BIOMARKERS}
        assert len(sentences) == len(TISSUES) * len(BIOMARKERS)
        assert not any("  " in told or " ;" in told or "no  " in told for told in sentences)
    assert len({sentence("Tumor", "Ki67", prefilled("Tumor", "Ki67", band)) for band in STAININGS}) == 4
    assert sentence(None, None, prefilled(None, None, None)).startswith(
        "A tissue section stained for an unnamed"
    )
    assert set(STAINS) == set(BIOMARKERS)
