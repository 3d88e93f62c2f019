"""data check of a card: the ten are sound, and each slip in a card of one's own is one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from his2lip.data.cards.card import Card, list_cards, load_card
from his2lip.data.check.card import check_card

PROTOCOL = {"split": "test", "label": "label", "classes": {"a": ["a"], "b": ["b"]}, "prompts": "staining"}
CARD: dict[str, Any] = {
    "name": "toy",
    "reader": "folder",
    "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
    "classes": {"a": ["A1"], "b": []},
}


def problems(protocol: dict[str, Any] | None = None, **more: Any) -> list[str]:
    protocols = {"default": PROTOCOL | {"basis": "ours"} | protocol} if protocol else {}
    return check_card(Card.model_validate(CARD | {"protocols": protocols} | more)).problems


@pytest.mark.parametrize("name", [*list_cards(), "benchmarks/datasets/own/anhir-lesions.yaml"])
def test_cards_of_the_project_are_sound(name: str) -> None:
    assert check_card(load_card(name)).problems == []


def test_counts_that_do_not_add_up_name_both() -> None:
    warnings = check_card(load_card("mist")).warnings
    assert "the published counts add up to 21,295, and 22,688 images are published in all" in warnings


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"split": "train"}, "it scores the split train, whose role is train, not report"),
        ({"classes": {"a": ["A"], "b": ["b"]}}, "no row's label can be 'A'; did you mean 'a'?"),
        ({"label": "tissue", "classes": {"t": ["Tumour"], "s": ["Stroma"]}}, "did you mean 'Tumor'?"),
        ({"label": "pair", "classes": {"t": ["Tumor CD3"], "s": ["Tumor KI67"]}}, "'Tumor Ki67'"),
        ({"where": {"stain": ["brown"]}}, "no row's stain can be 'brown'; known: AEC, DAB"),
        ({"where": {"stian": ["DAB"]}}, "it names the column 'stian', which shards do not have"),
        ({"breakdown": "indication"}, "breakdown names the column 'indication'"),
        ({"unit": "image", "pool_by": "image_id"}, "pool_by names the column 'image_id'"),
    ],
)
def test_label_rule_that_no_row_can_meet_is_a_problem(protocol: dict[str, Any], said: str) -> None:
    found = problems(protocol)
    assert any(said in line and line.startswith("protocol default: ") for line in found), found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reader": "folders"}, "no reader is named 'folders'; did you mean 'folder'?"),
        ({"options": {"mean": "label"}}, "did you mean 'means'"),
        ({"options": {"biomarker": "Ki68"}}, "unknown biomarker 'Ki68' (did you mean 'Ki67'?)"),
        ({"reader": "mihic", "options": {"any": 1}}, "any"),
        ({"reader": "bcdata", "options": {"per_image": 0}}, "greater than 0"),
        ({"reader": "acrobat", "options": {"tile_mpp": -1}}, "tile_mpp"),
        ({"reader": "pantumor", "options": {"field_um": 0}}, "greater than 0"),
        ({"stain": "DBA"}, "no image is stained 'DBA'; did you mean 'DAB'?"),
        ({"classes": {"a": ["x"], "b": ["X"]}}, "'x' spells both the class a and the class b"),
        ({"published": {"counts": {"val": {"all": 3}}}}, "names the split 'val'"),
        ({"published": {"counts": {"test": {"c": 3}}}}, "names the class 'c'"),
    ],
)
def test_card_that_cannot_be_prepared_right_is_a_problem(more: dict[str, Any], said: str) -> None:
    (found,) = problems(**more)
    assert said in found


def test_what_is_unknown_is_said() -> None:
    warnings = " ".join(check_card(Card.model_validate(CARD)).warnings)
    for word in ("commercial use", "no citation", "microns a pixel", "cannot be benchmarked"):
        assert word in warnings
