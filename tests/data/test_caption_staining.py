"""Captions are true of their patch: they follow its label and pixels, and are silent where these differ."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_data import stream

from his2lip.cli.data import prepare_dataset
from his2lip.config import validate
from his2lip.data.captions.bank import CaptionBank
from his2lip.data.captions.left_out import leave_out
from his2lip.data.captions.staining import ASSERTED_FROM, DENIED_BELOW, captioned
from his2lip.data.cards.card import Card, load_card
from his2lip.data.images import STAINED_FROM, stained_share, stained_shares
from his2lip.data.images.codec import encode_png
from his2lip.data.images.stain_vectors import unmix
from his2lip.data.images.tiling import tissue_mask
from his2lip.data.shards.labels import STAININGS, Statement, statement
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import DatasetError
from his2lip.synthetic.rows import pixels, true_share
from his2lip.synthetic.twins import twin_patches, twin_rows

TEMPLATES = CaptionBank.templates()
FRAME = re.compile(r"Immunostaining for|-stained patch|stained for|of the class \w+", re.IGNORECASE)
DENIAL = re.compile(
    r"(without|neither blue nor|free of)( cells or)? (brown|membrane staining)( (chromogen|[a-z]+(?=[.,])))?"
    r"|nothing is stained|are unstained or absent|unstained|negative",
    re.IGNORECASE,
)
CLAIM = re.compile(r"brown|stain(ed|ing)|positive|chromogen|precipitate", re.IGNORECASE)


def claims_staining(caption: str) -> bool:
    return CLAIM.search(DENIAL.sub("", FRAME.sub("", caption))) is not None


def denies_staining(caption: str) -> bool:
    without = FRAME.sub("", caption).lower()
    plain = ("only the blue", "nothing here binds", "nearly white")
    return DENIAL.search(without) is not None or any(words in without for words in plain)


def test_templates_assert_staining_in_the_three_stained_bands_and_in_no_other() -> None:
    for pair, lines in TEMPLATES.captions.items():
        assert not any(claims_staining(line) for line in lines), pair
        assert not any(denies_staining(line) for line in lines), pair
        for band in STAININGS:
            for line in TEMPLATES.stained[*pair, band]:
                assert claims_staining(line) == (band != "negative"), (band, line)
                assert denies_staining(line) == (band == "negative"), (band, line)


def test_typical_captions_assert_staining_that_a_patch_may_not_have() -> None:
    typical = CaptionBank.templates("ignore")
    assert all(claims_staining(line) for line in typical.lines("Tumor", "Ki67", "negative"))


STATEMENTS = st.builds(
    Statement, st.sampled_from([None, "positive", *STAININGS]), st.sampled_from([None, "a cyst"])
)


@given(STATEMENTS, st.none() | st.floats(0, 1))
def test_a_band_never_contradicts_label_or_pixels(stated: Statement, share: float | None) -> None:
    staining, described = captioned(stated, share)
    asserts, denies = staining in ("weak", "moderate", "strong"), staining == "negative"
    if share is not None:
        assert not (asserts and share < ASSERTED_FROM)
        assert not (denies and share >= DENIED_BELOW)
        assert described == stated.described
    assert not (asserts and stated.staining == "negative")
    assert not (denies and stated.staining in ("positive", "weak", "moderate", "strong"))
    if share is None and stated.staining == "positive":
        assert described is not None, "the label reaches the caption, though nothing is known of its amount"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"biomarker": "HER2", "score": "0"}, Statement("negative")),
        ({"biomarker": "HER2", "label": "2+"}, Statement("moderate")),
        ({"biomarker": "HER2", "score": "1"}, Statement("weak")),
        ({"biomarker": "HER2", "score": "3.0"}, Statement("strong")),
        ({"biomarker": "HER2", "label": "2 +"}, Statement("moderate")),
        ({"biomarker": "HER2", "score": "0.0"}, Statement("negative")),
        ({"biomarker": "ER", "score": "1"}, Statement()),
        ({"biomarker": "ER", "label": "0"}, Statement(None, "0")),
        ({"label": "Pos"}, Statement("positive")),
        ({"label": "negative"}, Statement("negative")),
        ({"tissue": "Tumor", "label": "tumor"}, Statement()),
        ({"biomarker": "CD3", "label": "CD3"}, Statement()),
        ({"label": "villous_adenoma"}, Statement(None, "villous adenoma")),
        ({"label": "grade1"}, Statement(None, "well differentiated")),
        ({"label": "low"}, Statement("weak")),
        ({}, Statement()),
    ],
)
def test_what_a_label_states(columns: dict[str, str], expected: Statement) -> None:
    card = {"staining": {"low": "weak"}, "descriptions": {"grade1": "well differentiated"}}
    assert statement(card, **columns) == expected


def test_cards_of_shipped_datasets_state_what_their_labels_mean() -> None:
    bcdata = load_card("bcdata").model_dump(mode="json")
    assert statement(bcdata, biomarker="Ki67", label="none") == Statement(
        None, "tissue without tumour nuclei"
    )
    assert statement(bcdata, biomarker="Ki67", label="positive") == Statement("positive")
    assert (
        statement(load_card("mihic").model_dump(), tissue="Stroma", biomarker="CD3", label="Stroma")
        == Statement()
    )


def test_measured_bands_agree_with_what_the_generator_stained() -> None:
    wrong, seen = 0, 0
    for name in ("her2-ihc-40x", "bcdata", "ihc4bc"):
        for row in [r for r in twin_rows(name) if r.shows == "Tumor"][:12]:
            share, true = stained_share(pixels(row)), true_share(row)
            assert share is not None
            seen += 1
            wrong += (share >= ASSERTED_FROM and true < ASSERTED_FROM / 2) or (
                share < ASSERTED_FROM and true >= DENIED_BELOW
            )
            if row.columns["label"] == "0":
                assert captioned(Statement("negative"), share)[0] in ("negative", None)
    assert seen == 36
    assert wrong <= 2


def test_white_that_is_not_white_reads_as_no_stain() -> None:
    tissue = np.full((64, 64, 3), (222, 217, 205), np.uint8)  # the white of BCData's camera
    tissue[2:] = (150, 140, 165)  # counterstain
    assert stained_share(tissue) == 0.0
    tissue[8:20, 8:20] = (110, 70, 40)
    assert stained_share(tissue) == 12 * 12 / 64**2
    assert stained_share(np.full((64, 64, 3), 250, np.uint8)) is None


def test_images_that_are_measured_together_have_the_shares_of_the_formula() -> None:
    draws = np.random.default_rng(0)
    images = np.stack([draws.integers(low, 256, (56, 56, 3), dtype=np.uint8) for low in range(40, 240, 8)])
    images[3] = 250  # no tissue
    shares = stained_shares(images)
    assert shares == [stained_share(image) for image in images]
    assert shares[3] is None
    for image, share in zip(images, shares, strict=True):
        if share is not None:
            white = np.percentile(image.reshape(-1, 3), 99, axis=0, method="lower").astype(np.uint8)
            density = unmix(image) - unmix(np.maximum(white, 180))  # of haematoxylin, eosin and DAB
            stained = (density[..., 2] >= STAINED_FROM) & (density[..., 2] > density[..., 0])
            assert share == pytest.approx(stained[tissue_mask(image)].mean(), abs=2 / 56**2)
    assert sum(bool(share) for share in shares) > 10


def dab(amount: float) -> bytes:
    """A patch of haematoxylin with a corner of DAB, whose share of the area is `amount`."""
    image = np.full((40, 40, 3), (170, 160, 200), np.uint8)
    image[:4] = 240
    side = round(40 * amount**0.5)
    image[40 - side :, :side] = (110, 70, 40)
    return encode_png(image)


def write_own(folder: Path, label: dict[str, float], *, stain: str = "DAB") -> str:
    """Eight patches of each class of one's own, with a share of DAB of each class."""
    card = {
        "name": "own", "reader": "folder", "stain": stain,
        "splits": {"train": {"role": "train"}}, "classes": {name: [] for name in label},
    }  # fmt: skip
    with ShardWriter(folder, card=validate(Card, card)) as writer:
        for number in range(8 * len(label)):
            name = list(label)[number % len(label)]
            writer.add(
                Patch(
                    patch_id=f"own/{number}", image=dab(label[name]), dataset="own", split="train", width=40,
                    height=40, tissue="Tumor", biomarker="Ki67", label=name, stain=stain,
                )
            )  # fmt: skip
    return str(folder)


def captions_by_label(folder: Path, of_label: dict[str, float], stain: str = "DAB") -> dict[str, set[str]]:
    """The captions of each class of `write_own` in four epochs."""
    found: dict[str, set[str]] = {}
    uri = write_own(folder, of_label, stain=stain)
    for batch in stream(uri, batch_size=8, lanes=1, stop_step=8):
        for patch_id, caption in zip(batch.patch_ids, batch.captions, strict=True):
            number = int(patch_id.rpartition("/")[2])
            found.setdefault(list(of_label)[number % len(of_label)], set()).add(caption)
    return found


def test_labels_of_ones_own_reach_the_captions(tmp_path: Path) -> None:
    said = captions_by_label(tmp_path / "a", {"positive": 0.3, "negative": 0.0})
    assert all(claims_staining(caption) for caption in said["positive"])
    assert not any(claims_staining(caption) for caption in said["negative"])
    said = captions_by_label(tmp_path / "b", {"villous": 0.0, "flat_lesion": 0.0})
    assert all("villous" in caption for caption in said["villous"])
    assert all("flat lesion" in caption for caption in said["flat_lesion"])


def test_labels_that_pixels_contradict_are_not_repeated(tmp_path: Path) -> None:
    said = captions_by_label(tmp_path / "a", {"positive": 0.0, "negative": 0.3})
    both = said["positive"] | said["negative"]
    assert not any(claims_staining(caption) or denies_staining(caption) for caption in both)


def test_a_stain_that_cannot_be_measured_leaves_the_label(tmp_path: Path) -> None:
    said = captions_by_label(tmp_path / "a", {"positive": 0.0, "negative": 0.0}, stain="AEC")
    assert all("positive" in caption for caption in said["positive"])
    assert all(denies_staining(caption) for caption in said["negative"])


def test_a_prepared_folder_of_ones_own_is_captioned_by_its_classes(tmp_path: Path) -> None:
    for name, share in (("hot", 0.3), ("cold", 0.0)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(8):
            image = dab(share + number / 1000)
            (tmp_path / "in" / name / f"{number}.png").write_bytes(image)
    (tmp_path / "own.yaml").write_text(
        "name: own\nreader: folder\noptions: {tissue: Tumor, biomarker: CD8}\nstain: DAB\n"
        "classes: {hot: [], cold: []}\ndescriptions: {hot: immune-inflamed}\n"
        "splits: {train: {role: train}}\n"
    )
    prepare_dataset(str(tmp_path / "own.yaml"), tmp_path / "in", str(tmp_path / "out"))
    with stream(str(tmp_path / "out"), batch_size=8, lanes=1) as source:
        said = [(i, c) for batch in source for i, c in zip(batch.patch_ids, batch.captions, strict=True)]
    assert len(said) == 16
    for patch_id, caption in said:
        assert ("immune-inflamed" if "/hot/" in patch_id else "cold") in caption
        assert claims_staining(caption) == ("/hot/" in patch_id)


def test_patches_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    uri = write_own(tmp_path / "a", {"positive": 0.3, "negative": 0.0})
    same = write_own(tmp_path / "b", {"negative": 0.0}, stain="AEC")
    for place, bank in ((uri, CaptionBank.templates("ignore")), (same, TEMPLATES)):
        with pytest.raises(DatasetError) as refused:
            stream(place, bank=bank)
        assert (refused.value.where, refused.value.key) == (place, "data.split")


def test_labels_of_patches_without_captions_do_not_count_as_a_difference(tmp_path: Path) -> None:
    tree = {"name": "own", "reader": "folder", "stain": "AEC", "splits": {"train": {"role": "train"}}}
    with ShardWriter(tmp_path / "own", card=validate(Card, tree)) as writer:
        for number in range(32):
            biomarker, label = [("Ki67", "negative"), (None, "positive")][number % 2]
            writer.add(Patch(
                patch_id=f"own/{number:02d}", image=encode_png(np.full((32, 32, 3), number, np.uint8)),
                dataset="own", split="train", width=32, height=32, tissue="Tumor", biomarker=biomarker,
                label=label, stain="AEC",
            ))  # fmt: skip
    pair = ("Tumor", "Ki67")
    bank = replace(TEMPLATES, missing="drop", captions={pair: TEMPLATES.captions[pair]})
    with pytest.raises(DatasetError) as refused:
        stream(str(tmp_path / "own"), bank=bank)
    assert refused.value.key == "data.split"


def test_imported_captions_are_drawn_as_they_are_and_only_other_pairs_are_measured(tmp_path: Path) -> None:
    uri = write_own(tmp_path / "a", {"positive": 0.3, "negative": 0.0})
    bank = CaptionBank({("Tumor", "Ki67"): ("A sentence of the corpus.",)}, "template")
    with pytest.raises(DatasetError):
        stream(uri, bank=bank)
    with stream(uri, bank=bank, shrink=True) as source:
        (batch,) = source
    assert set(batch.captions) == {"A sentence of the corpus."}
    assert batch.finding.tolist() == [-1] * len(batch)


def test_her2_scores_of_the_twin_are_captioned_as_they_are_scored(tmp_path: Path) -> None:
    card = load_card("her2-ihc-40x")
    with ShardWriter(tmp_path / "her2", card=card, generated=True) as writer:
        patches = [p for p in twin_patches("her2-ihc-40x", scale=0.2) if p.split == "train"]
        scores = {patch.patch_id: patch.score for patch in patches}
        for patch in patches:
            writer.add(patch)
    for batch in stream(str(tmp_path / "her2"), batch_size=8, lanes=1, image_size=64):
        for patch_id, caption in zip(batch.patch_ids, batch.captions, strict=True):
            assert not (claims_staining(caption) and scores[patch_id] == "0"), caption
            assert not (denies_staining(caption) and scores[patch_id] != "0"), caption


def test_a_caption_of_a_staining_band_of_another_pair_is_not_left_out() -> None:
    own = tuple(
        f"{word} nuclei with DAB" for word in ("few", "some", "many", "large", "small", "pale", "dark")
    )
    whole = {("Tumor", "Ki67"): own, ("Tumor", None): ("a tumour",)}
    bank = CaptionBank(whole, stained={("Tumor", None, "weak"): own[:3]})
    kept, left_out = leave_out(bank, 0.9)
    assert left_out
    assert not set(left_out["Tumor", "Ki67"]) & set(kept.lines("Tumor", None, "weak"))
