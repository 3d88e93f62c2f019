"""The ten cards have the required facts, and a card that is not valid is refused with the key at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from his2lip.cli.data import check_dataset
from his2lip.config import validate
from his2lip.data.cards.card import Card, Protocol, is_project_card, list_cards, load_card
from his2lip.data.check.card import check_card
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
def test_protocols_state_where_they_come_from(card: Card) -> None:
    assert card.protocols["paper"].basis in ("published", "inferred")
    assert card.protocols["default"].basis == "ours"


def test_her2_protocols_have_the_classes_of_the_design() -> None:
    card = load_card("her2-ihc-40x")
    assert card.protocols["paper"].classes == {"negative": ["0"], "positive": ["3+"]}
    assert card.protocols["clinical"].apart == {"equivocal": ["2+"]}
    assert card.protocols["score4"].ordinal


def test_only_mihic_is_in_domain() -> None:
    assert [card.name for card in CARDS if card.in_domain] == ["mihic"]


def test_only_the_licence_of_bci_is_known_to_forbid_commercial_use() -> None:
    assert [c.name for c in CARDS if c.licence.commercial_use is False] == ["bci"]
    assert (load_card("ihc4bc").licence.name, load_card("ihc4bc").licence.spdx) == ("not stated", None)


@pytest.mark.parametrize("card", CARDS, ids=TEN)
def test_protocols_with_tiles_state_why_they_are_pooled_as_they_are(card: Card) -> None:
    for protocol in card.protocols.values():
        assert protocol.view != "tiles" or protocol.pool_reason
        assert protocol.tile_pool == "mean" or protocol.view == "tiles"


def test_rare_events_are_pooled_by_the_tiles_that_look_most_like_them() -> None:
    pooled = {(c.name, name): p.tile_pool for c in CARDS for name, p in c.protocols.items()}
    assert pooled["ihc4bc", "er"] == pooled["ihc4bc", "default"] == pooled["bci", "default"] == "top-k"
    assert pooled["ihc4bc", "ki67"] == pooled["mist", "default"] == pooled["acrobat", "default"] == "mean"


def test_spellings_of_a_class_are_one_class() -> None:
    card = load_card("pantumor")
    assert {card.label(s) for s in ("TUMOR CELL", "tumor_cell", "tumour cell")} == {"tumour cell"}
    with pytest.raises(DatasetError) as refused:
        card.label("fungus")
    assert (refused.value.key, refused.value.where) == ("fungus", "pantumor")


def test_unknown_card_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as refused:
        load_card("mihik")
    assert refused.value.key == "mihik"
    assert "'mihic'" in (refused.value.fix or "")


def test_a_user_s_card_needs_three_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nreader: folder\nsplits: {test: {role: report}}\n")
    assert load_card(path).roles == {"test": "report"}


def test_misspelt_key_names_the_known_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nreader: folder\nlicense: {}\nsplits: {test: {role: report}}\n")
    with pytest.raises(ConfigError) as refused:
        load_card(path)
    assert refused.value.key == "license"
    assert str(path) in str(refused.value.where)
    assert "'licence'" in (refused.value.fix or "")


CARD: dict[str, Any] = {"name": "mine", "reader": "folder", "splits": {"test": {"role": "report"}}}
CLASSES = {"a": ["a"], "b": ["b"]}
PROTOCOL: dict[str, Any] = {
    "split": "test", "label": "label", "classes": CLASSES, "prompts": "x", "basis": "ours",
}  # fmt: skip
CARVE = {"source": "test", "into": "test", "fraction": 0.5, "by": "case"}


def test_a_card_with_a_protocol_and_carving_is_valid() -> None:
    card = validate(Card, CARD | {"protocols": {"default": PROTOCOL}, "carve": [CARVE]})
    assert card.protocols["default"] == Protocol.model_validate(PROTOCOL)


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        ({"protocols": {"default": PROTOCOL | {"split": "tset"}}}, "protocols.default.split"),
        ({"carve": [CARVE | {"source": "nowhere"}]}, "carve.0.source"),
        ({"carve": [CARVE, CARVE | {"into": "nowhere"}]}, "carve.1.into"),
        ({"splits": {"../train": {"role": "report"}}}, "splits.../train"),
        ({"splits": {"a/b": {"role": "report"}}}, "splits.a/b"),
        ({"splits": {".hidden": {"role": "report"}}}, "splits..hidden"),
        ({"splits": {"": {"role": "report"}}}, "splits."),
        ({"splits": {"test": {"role": "report", "repeats": ["tset"]}}}, "splits.test.repeats"),
        ({"protocols": {"default": PROTOCOL | {"tile_pool": "max"}}}, "protocols.default.event"),
        (
            {"protocols": {"default": PROTOCOL | {"tile_pool": "top-k", "event": "c"}}},
            "protocols.default.event",
        ),
        ({"protocols": {"default": PROTOCOL | {"version": 2}}}, "protocols.default.changelog"),
        ({"protocols": {"default": PROTOCOL | {"changelog": {2: "x"}}}}, "protocols.default.changelog"),
        ({"mpp": 0}, "mpp"),
        ({"mpp": -0.5}, "mpp"),
        ({"mpp": 0.049}, "mpp"),
        ({"mpp": 20.1}, "mpp"),
        ({"mpp": 352.8}, "mpp"),
        ({"magnification": 0}, "magnification"),
    ],
)
def test_unknown_splits_their_unsafe_names_and_impossible_scales_are_refused(
    fault: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(Card, CARD | fault)
    assert refused.value.key == key


@pytest.mark.parametrize("mpp", [0.05, 20])
def test_the_limits_of_microns_per_pixel_are_possible(mpp: float) -> None:
    assert validate(Card, CARD | {"mpp": mpp}).mpp == mpp


@pytest.mark.parametrize(
    "fault",
    [
        {"classes": {"a": ["x"], "b": ["x"]}},
        {"classes": {"a": ["x", "x"], "b": ["y"]}},
        {"apart": {"c": ["a"]}},
        {"classes": {"a": ["a"]}},
    ],
)
def test_a_label_that_is_listed_twice_and_a_single_class_are_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(Card, CARD | {"protocols": {"default": PROTOCOL | fault}})
    assert refused.value.key == "protocols.default.classes"


def test_a_name_that_means_a_project_card_and_one_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mist.yaml").write_text("{name: mist, reader: folder, splits: {test: {role: report}}}")
    with pytest.raises(ConfigError) as refused:
        check_dataset("mist")
    assert (refused.value.where, refused.value.key) == (Path("mist.yaml"), "mist")
    own = load_card("mist.yaml")
    assert not is_project_card(own)
    assert "name" in [warning.key for warning in check_card(own).warnings]
    check_dataset("mist.yaml")
    check_dataset("bci")


def test_the_cards_of_the_project_are_recognised() -> None:
    assert all(map(is_project_card, CARDS))
