"""The ten cards say what the design asks for, and a wrong card is refused by name."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from his2lip.data.cards.card import Card, Carve, Protocol, Split, list_cards, load_card
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation.prompts import PromptSet
from his2lip.taxonomy import BIOMARKERS, TISSUES

TEN = [
    "acrobat",
    "anhir-lung",
    "bcdata",
    "bci",
    "her2-ihc-40x",
    "hnscc",
    "ihc4bc",
    "mihic",
    "mist",
    "pantumor",
]
CARDS = [load_card(name) for name in TEN]


def test_there_are_ten_cards() -> None:
    assert list_cards() == TEN


@pytest.mark.parametrize("card", CARDS, ids=TEN)
def test_card_has_its_facts_as_fields(card: Card) -> None:
    assert card.source.record
    assert card.citation
    assert card.organ
    assert card.published.images
    assert card.licence.name
    assert {"clip", "plip", "biomedclip"} <= set(card.pretraining)
    assert "report" in card.roles.values()


@pytest.mark.parametrize("card", CARDS, ids=TEN)
def test_protocols_score_report_splits_with_prompts_for_each_class(card: Card) -> None:
    assert {"paper", "default"} <= set(card.protocols)
    for protocol in card.protocols.values():
        assert card.roles[protocol.split] == "report"
        PromptSet.load(protocol.prompts).narrow(protocol.classes)


@pytest.mark.parametrize("card", CARDS, ids=TEN)
def test_protocols_use_canonical_names(card: Card) -> None:
    for protocol in card.protocols.values():
        values = {v for listed in protocol.classes.values() for v in listed}
        known = {"tissue": set(TISSUES), "biomarker": set(BIOMARKERS), "label": set(card.classes)}
        known["score"] = {"0", "1+", "2+", "3+"}
        known["pair"] = {f"{t} {b}" for t in TISSUES for b in BIOMARKERS}
        assert values <= known[protocol.label]


@pytest.mark.parametrize("card", CARDS, ids=TEN)
def test_paper_protocol_is_marked_by_how_sure_it_is(card: Card) -> None:
    assert card.protocols["paper"].basis in ("published", "inferred")
    assert card.protocols["default"].basis == "ours"


def test_her2_is_scored_as_the_design_says() -> None:
    card = load_card("her2-ihc-40x")
    assert card.protocols["paper"].classes == {"negative": ["0"], "positive": ["3+"]}
    assert card.protocols["clinical"].apart == {"equivocal": ["2+"]}
    assert card.protocols["score4"].ordinal


def test_mihic_alone_is_in_domain() -> None:
    assert [card.name for card in CARDS if card.in_domain] == ["mihic"]


def test_licences_that_forbid_commerce_say_so() -> None:
    assert [c.name for c in CARDS if c.licence.commercial_use is False] == ["bci", "ihc4bc"]


def test_spellings_of_a_class_are_one_class() -> None:
    card = load_card("pantumor")
    assert {card.label(s) for s in ("TUMOR CELL", "tumor_cell", "tumour cell")} == {"tumour cell"}
    with pytest.raises(DatasetError, match="not a class"):
        card.label("fungus")


def test_unknown_card_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mihic'"):
        load_card("mihik")


def test_card_of_ones_own_needs_three_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nreader: folder\nsplits: {test: {role: report}}\n")
    assert load_card(path).roles == {"test": "report"}


def test_misspelt_key_names_the_known_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nreader: folder\nlicense: {}\nsplits: {test: {role: report}}\n")
    with pytest.raises(ConfigError, match="did you mean 'licence'"):
        load_card(path)


TEST_ONLY = {"test": Split(role="report")}
BINARY = {"a": ["a"], "b": ["b"]}


def test_protocol_on_an_undeclared_split_is_refused() -> None:
    protocol = Protocol(split="tset", label="label", classes=BINARY, prompts="x", basis="ours")
    with pytest.raises(ValueError, match="tset"):
        Card(name="mine", reader="folder", splits=TEST_ONLY, protocols={"default": protocol})


@pytest.mark.parametrize("split", ["../train", "a/b", ".hidden", ""])
def test_split_whose_folder_would_lie_elsewhere_is_refused(split: str) -> None:
    with pytest.raises(ValueError, match="a split's name is made of letters"):
        Card(name="mine", reader="folder", splits={split: Split(role="report")})


@pytest.mark.parametrize(
    "scale", [{"mpp": 0}, {"mpp": -0.5}, {"mpp": 0.049}, {"mpp": 20.1}, {"mpp": 352.8}, {"magnification": 0}]
)
def test_an_impossible_scale_is_refused(scale: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError) as refused:
        Card.model_validate({"name": "mine", "reader": "folder", "splits": TEST_ONLY} | scale)
    assert [error["loc"] for error in refused.value.errors()] == [tuple(scale)]


@pytest.mark.parametrize("mpp", [0.05, 20])
def test_the_limits_of_microns_per_pixel_are_possible(mpp: float) -> None:
    card = Card.model_validate({"name": "mine", "reader": "folder", "splits": TEST_ONLY, "mpp": mpp})
    assert card.mpp == mpp


def test_carving_into_an_undeclared_split_is_refused() -> None:
    carve = Carve(source="test", into="nowhere", fraction=0.5, by="case")
    with pytest.raises(ValueError, match="nowhere"):
        Card(name="mine", reader="folder", splits=TEST_ONLY, carve=[carve])


def test_label_in_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        Protocol(split="t", label="label", classes={"a": ["x"], "b": ["x"]}, prompts="x", basis="ours")
