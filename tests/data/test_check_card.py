"""Check of a card: the project's cards have no problem, and each fault of a card is found at its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.data.cards.card import Card, list_cards, load_card
from his2lip.data.check.card import CardFinding, check_card

PROTOCOL = {"split": "test", "label": "label", "classes": {"a": ["a"], "b": ["b"]}, "prompts": "staining"}
CARD: dict[str, Any] = {
    "name": "toy",
    "reader": "folder",
    "splits": {"train": {"role": "train"}, "test": {"role": "report"}},
    "classes": {"a": ["A1"], "b": []},
}

OWN = [f"benchmarks/datasets/own/{name}.yaml" for name in ("anhir-lesions", "her2-oesophagus", "nuclei")]


def problems(protocol: dict[str, Any] | None = None, **more: Any) -> list[CardFinding]:
    protocols = {"default": PROTOCOL | {"basis": "ours"} | protocol} if protocol else {}
    return check_card(Card.model_validate(CARD | {"protocols": protocols} | more)).problems


@pytest.mark.parametrize("name", [*list_cards(), *OWN])
def test_cards_of_the_project_have_no_problem(name: str) -> None:
    assert check_card(load_card(name)).problems == []


def test_counts_that_do_not_add_up_are_a_warning_with_both_numbers() -> None:
    (warning,) = (w for w in check_card(load_card("mist")).warnings if w.key == "published.counts")
    assert "21,295" in warning.what
    assert "22,688" in warning.what


@pytest.mark.parametrize(
    ("protocol", "key", "names"),
    [
        ({"split": "train"}, "split", ["'train'", "'report'"]),
        ({"classes": {"a": ["A"], "b": ["b"]}}, "classes.a", ["'A'", "'a'"]),
        ({"apart": {"c": ["B"]}}, "apart.c", ["'B'", "'b'"]),
        (
            {"label": "tissue", "classes": {"t": ["Tumour"], "s": ["Stroma"]}},
            "classes.t",
            ["'Tumour'", "'Tumor'"],
        ),
        (
            {"label": "pair", "classes": {"t": ["Tumor CD3"], "s": ["Tumor KI67"]}},
            "classes.s",
            ["'Tumor KI67'", "'Tumor Ki67'"],
        ),
        ({"where": {"stain": ["brown"]}}, "where.stain", ["'brown'", "AEC, DAB"]),
        ({"where": {"stian": ["DAB"]}}, "where.stian", ["'stian'"]),
        ({"breakdown": "indication"}, "breakdown", ["'indication'"]),
        ({"unit": "image", "pool_by": "image_id"}, "pool_by", ["'image_id'"]),
    ],
)
def test_protocol_that_no_row_can_match_is_a_problem(
    protocol: dict[str, Any], key: str, names: list[str]
) -> None:
    (found,) = problems(protocol)
    assert found.key == f"protocols.default.{key}"
    assert [name for name in names if name not in found.what] == []


@pytest.mark.parametrize(
    ("more", "key", "names"),
    [
        ({"reader": "folders"}, "reader", ["'folders'", "'folder'"]),
        ({"options": {"mean": "label"}}, "options.mean", ["'mean'", "'means'"]),
        ({"options": {"biomarker": "Ki68"}}, "options.biomarker", ["'Ki68'", "'Ki67'"]),
        ({"reader": "mihic", "options": {"any": 1}}, "options.any", ["'any'"]),
        ({"reader": "bcdata", "options": {"per_image": 0}}, "options.per_image", ["0"]),
        ({"reader": "acrobat", "options": {"tile_mpp": -1}}, "options.tile_mpp", ["-1"]),
        ({"reader": "pantumor", "options": {"field_um": 0}}, "options.field_um", ["0"]),
        ({"stain": "DBA"}, "stain", ["'DBA'", "'DAB'"]),
        ({"classes": {"a": ["x"], "b": ["X"]}}, "classes.b", ["'x'", "'a'", "'b'"]),
        ({"organ": ["lung"], "organ_by": {"region": {"A": "lung"}}}, "organ_by.region", ["'region'"]),
        ({"published": {"counts": {"val": {"all": 3}}}}, "published.counts.val", ["'val'"]),
        ({"published": {"counts": {"test": {"c": 3}}}}, "published.counts.test.c", ["'c'"]),
    ],
)
def test_card_that_cannot_be_prepared_as_meant_is_a_problem(
    more: dict[str, Any], key: str, names: list[str]
) -> None:
    (found,) = problems(**more)
    assert found.key == key
    assert [name for name in names if name not in found.what] == []


def test_backbones_that_may_have_seen_the_images_are_warnings_and_others_are_none() -> None:
    known = {"clip": "unknown", "plip": "no", "musk": "yes", "biomedclip": "unknown"}
    found = check_card(Card.model_validate(CARD | {"pretraining": known})).warnings
    seen, unknown = (warning.what for warning in found if warning.key == "pretraining")
    assert ("musk" in seen, "clip, biomedclip" in unknown, "plip" in seen + unknown) == (True, True, False)


def test_the_command_shows_licence_scale_with_its_basis_and_why_tiles_are_pooled(
    tmp_path: Path,
) -> None:
    card = CARD | {
        "licence": {"name": "the licence", "spdx": "CC-BY-4.0"},
        "magnification": 40,
        "mpp": 0.25,
        "mpp_basis": "inferred",
        "protocols": {"default": PROTOCOL | {"basis": "ours", "pool_reason": "few tiles show it"}},
    }
    (tmp_path / "toy.yaml").write_text(json.dumps(card))
    shown = " ".join(CliRunner().invoke(app, ["data", "check", str(tmp_path / "toy.yaml")]).output.split())
    facts = ("the licence (SPDX CC-BY-4.0)", "40x, 0.25 microns per pixel (inferred)", "few tiles show it")
    assert [fact for fact in facts if fact not in shown] == []


def test_facts_that_a_card_lacks_are_warnings() -> None:
    warnings = check_card(Card.model_validate(CARD)).warnings
    assert [warning.key for warning in warnings] == ["licence", "citation", "mpp", "protocols"]
