"""Protocols applied to shards: rows, classes, units, and their digests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from his2lip.config import unsealed, validate
from his2lip.data.cards.card import Card, Protocol, list_cards, load_card
from his2lip.data.shards.reader import ShardSet
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation.cell_figures import Units, figures
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import groups_digest, of_role, select, top_of, view_of
from his2lip.evaluation.statistics import Clusters
from his2lip.evaluation.views import TrainingField, View
from his2lip.evaluation.zero_shot import Top

Write = Callable[..., ShardSet]
CLASSES = {"Tumor": ["Tumor"], "Stroma": ["Stroma"]}


def protocol(**changes: object) -> Protocol:
    return Protocol.model_validate(
        {"split": "test", "label": "tissue", "classes": CLASSES, "prompts": "tissue", "basis": "ours"}
        | changes
    )


def test_rows_get_the_class_whose_list_has_their_label(write_shards: Write) -> None:
    shards = write_shards()
    found = select(shards, protocol())
    tissue = shards.table("test")["tissue"].to_pylist()
    assert found.classes == ("Tumor", "Stroma")
    assert [found.classes[c] for c in found.labels] == tissue
    assert found.unit_ids == shards.table("test")["patch_id"].to_pylist()
    assert found.scored.all()


def test_where_keeps_the_rows_that_have_a_listed_value(write_shards: Write) -> None:
    shards = write_shards()
    narrowed = select(shards, protocol(where={"slide_id": ["slide-2"]}))
    slides = shards.table("test")["slide_id"].to_pylist()
    assert [slides[r] for r in narrowed.rows] == ["slide-2"] * slides.count("slide-2")


def card_of(**more: object) -> Card:
    return validate(Card, {"name": "toy", "reader": "none", "splits": {"test": {"role": "report"}}} | more)


@pytest.mark.parametrize("organs", [["lung"], ["lung", "breast"]])
def test_figures_are_by_the_organ_that_the_card_declares(write_shards: Write, organs: list[str]) -> None:
    by_slide = {"slide-2": "lung", "slide-5": organs[-1]}
    card = card_of(organ=organs, organ_by={"slide_id": by_slide})
    shards = write_shards()
    found = select(shards, protocol(), card=card)
    slides = shards.table("test")["slide_id"].to_pylist()
    assert found.breakdown["organ"] == [by_slide[slide] for slide in slides]
    assert found.groups_sha256 != select(shards, protocol()).groups_sha256
    predicted = found.labels.copy()
    predicted[slides.index("slide-5")] ^= 1
    scores = np.eye(2, dtype=np.float32)[predicted]
    units = Units(
        found.classes, found.unit_ids, found.labels, predicted, scores, found.clusters, found.breakdown, False
    )
    parts = figures(units, None)["breakdown"]["organ"]
    of_last = sum(organ == organs[-1] for organ in found.breakdown["organ"])
    assert sorted(parts) == sorted(organs)
    assert parts[organs[-1]]["accuracy"] == 1 - 1 / of_last
    assert {organ: part["n"] for organ, part in parts.items()} == {
        organ: found.breakdown["organ"].count(organ) for organ in organs
    }


def test_an_organ_that_cannot_be_told_is_not_broken_down(write_shards: Write) -> None:
    found = select(write_shards(), protocol(), card=card_of(organ=["lung", "breast"]))
    assert set(found.breakdown["organ"]) == {None}
    with pytest.raises(ConfigError) as refused:
        card_of(organ=["lung"], organ_by={"slide_id": {"slide-1": "breast"}})
    assert refused.value.key == "organ_by.slide_id.slide-1"


def test_pantumor_tells_the_organ_from_the_tumour_indication() -> None:
    card = load_card("pantumor")
    found = {card.organ_of({"region_id": name}) for name in ("HNSCC", "NSCLC", "TNBC", "GC")}
    assert found == set(card.organ)
    assert card.organ_of({"region_id": None}) is None


def test_labels_apart_do_not_count_as_a_class(write_shards: Write) -> None:
    shards = write_shards()
    classes = {"Tumor": ["Tumor"], "Necrosis": ["Necrosis"]}
    with pytest.raises(DatasetError) as refused:
        select(shards, protocol(classes=classes, apart={"rest": ["Stroma"]}))
    assert (refused.value.where, refused.value.key) == (f"{shards.uri}, split test", "tissue")


def test_a_pair_is_tissue_type_and_biomarker_where_both_are_known(write_shards: Write) -> None:
    classes = {"Tumor CD3": ["Tumor CD3"], "Stroma CD3": ["Stroma CD3"]}
    found = select(write_shards(biomarker="CD3"), protocol(label="pair", classes=classes))
    assert found.classes == ("Tumor CD3", "Stroma CD3")
    assert len(found.rows) == 8
    with pytest.raises(DatasetError) as refused:
        select(write_shards("unstained"), protocol(label="pair", classes=classes))
    assert refused.value.key == "pair"


def test_a_slide_is_one_unit_and_its_rows_must_have_one_class(write_shards: Write) -> None:
    shards = write_shards()
    with pytest.raises(DatasetError) as refused:
        select(shards, protocol(unit="slide"))
    assert refused.value.key in ("slide-2", "slide-5")
    by_tissue = select(shards, protocol(unit="image", pool_by="tissue"))
    assert sorted(by_tissue.unit_ids) == ["Stroma", "Tumor"]
    tissue = shards.table("test")["tissue"].to_pylist()
    assert [by_tissue.unit_ids[u] for u in by_tissue.unit] == tissue


def test_the_split_digest_depends_on_units_and_labels_and_the_images_digest_on_their_scale(
    write_shards: Write, real_ihc: np.ndarray
) -> None:
    shards = write_shards()
    found = select(shards, protocol())
    assert found.split_sha256 == select(shards, protocol()).split_sha256
    swapped = select(shards, protocol(classes={"Tumor": ["Stroma"], "Stroma": ["Tumor"]}))
    assert swapped.split_sha256 != found.split_sha256
    assert swapped.images_sha256 == found.images_sha256
    other_scale = select(write_shards("b", mpp=0.25), protocol())
    assert other_scale.images_sha256 != found.images_sha256


def test_the_digest_of_groups_does_not_depend_on_the_order_of_units() -> None:
    ids, cases, organs = ["a", "b", "c"], ["x", "y", "y"], ["lung", None, "breast"]
    known = groups_digest(ids, Clusters(cases, "case"), {"organ": organs})
    turned = groups_digest(ids[::-1], Clusters(cases[::-1], "case"), {"organ": organs[::-1]})
    assert turned == known
    others = [
        groups_digest(ids, Clusters(cases[::-1], "case"), {"organ": organs}),
        groups_digest(ids, Clusters(cases, "case"), {"organ": organs[::-1]}),
        groups_digest(ids, Clusters(cases, "case"), {"stain": organs}),
        groups_digest(ids, Clusters(cases, "case", "case"), {"organ": organs}),
    ]
    assert len({known, *others}) == 5


def test_an_empty_selection_is_refused_with_the_labels_of_the_split(write_shards: Write) -> None:
    with pytest.raises(DatasetError) as refused:
        select(write_shards(), protocol(classes={"yes": ["Y"], "no": ["N"]}))
    assert refused.value.key == "tissue"
    assert "Stroma, Tumor" in str(refused.value.fix)
    with pytest.raises(DatasetError) as refused:
        select(write_shards("b"), protocol(where={"organ": ["lung"]}))
    assert refused.value.key == "organ"


def test_tiles_have_the_field_of_the_protocol_or_else_that_of_the_model() -> None:
    assert view_of(protocol(view="tiles")) == View(kind="tiles")
    field = TrainingField(256, 116.0)
    assert view_of(protocol(view="tiles"), field) == View(kind="tiles", um=116.0, size=256)
    asked = protocol(view="tiles", tile_um=58, max_tiles=4, coverage=0.8)
    assert view_of(asked, field) == View(kind="tiles", um=58, size=128, max_tiles=4, coverage=0.8)


def test_a_card_of_an_earlier_version_with_microns_per_pixel_of_tiles_has_tiles_of_the_same_size() -> None:
    assert protocol(view="tiles", tile_mpp=0.92).tile_um == pytest.approx(117.76)
    assert protocol(view="tiles", tile_mpp=None) == protocol(view="tiles")


def test_the_rarest_class_is_the_event_of_pooling() -> None:
    assert top_of(protocol()) is None
    assert top_of(protocol(tile_pool="max", event="Stroma")) == Top(1, 0.0)
    assert top_of(protocol(tile_pool="top-k", event="Tumor", tile_share=0.25)) == Top(0, 0.25)


@pytest.mark.parametrize("name", list_cards())
def test_every_protocol_of_a_card_has_prompts_for_its_classes_and_scores_a_report_split(name: str) -> None:
    card = load_card(name)
    assert {"paper", "default"} <= set(card.protocols)
    for found in card.protocols.values():
        assert PromptSet.load(found.prompts).narrow(found.classes).classes == tuple(found.classes)
        assert card.roles[found.split] == "report"


@pytest.mark.parametrize("name", list_cards())
def test_the_tiles_of_every_card_show_half_of_an_image_of_the_published_size(name: str) -> None:
    card = load_card(name)
    side = card.published.size_px or card.options.get("tile_px") or 4000
    pixels = np.full((side, side, 3), 120, np.uint8)
    for found in (p for p in card.protocols.values() if p.view == "tiles"):
        for mpp in {card.mpp, *card.options.get("mpp", {}).values()}:
            seen = view_of(found).squares(pixels, mpp).seen
            assert seen is not None
            assert seen >= 0.5


def test_an_invalid_card_of_the_user_fails_its_grid_cells_with_the_nearest_key(write_shards: Write) -> None:
    path = Path(write_shards().uri) / "dataset.json"
    tree = unsealed(json.loads(path.read_text()))
    tree["card"]["protocol"] = tree["card"].pop("protocols")
    path.write_text(json.dumps(tree))
    config = BenchmarkConfig.model_validate({"models": ["tiny"], "datasets": {"toy": str(path.parent)}})
    plans, (failure,) = plan_cells(config)
    assert not plans
    assert "did you mean 'protocols'" in failure.reason


def test_a_card_of_ones_own_with_the_name_of_a_project_card_scores_its_dataset(write_shards: Write) -> None:
    path = Path(write_shards("mist").uri) / "dataset.json"
    tree = unsealed(json.loads(path.read_text()))
    assert tree["project_card"] is False
    own = {"split": "test", "label": "tissue", "classes": CLASSES, "prompts": "tissue", "basis": "ours"}
    tree["card"]["protocols"] = {"default": own, "paper": own}
    path.write_text(json.dumps(tree))
    settings = {"models": ["tiny"], "datasets": {"mist": str(path.parent)}, "protocols": ["default", "paper"]}
    plans, failures = plan_cells(BenchmarkConfig.model_validate(settings))
    assert not failures
    assert [plan.protocol for plan in plans] == [protocol(), protocol()]
    assert [plan.project_card for plan in plans] == [None, None], "so the paper's figures are not shown"


def test_a_dataset_of_a_project_card_is_scored_by_the_present_card(write_shards: Write) -> None:
    shards = write_shards("mist")
    stored, present = shards.card(), load_card("mist")
    assert stored != present
    prepared_with = {True: present, False: stored, None: stored}  # None: its reader is not the project's
    for known, card in prepared_with.items():
        info = dataclasses.replace(shards.info, project_card=known)
        assert dataclasses.replace(shards, info=info).card() == card
    info = dataclasses.replace(shards.info, project_card=None, card=shards.info.card | {"reader": "mist"})
    assert dataclasses.replace(shards, info=info).card() == present


def test_a_benchmark_of_one_role_scores_the_split_of_that_role(write_shards: Write) -> None:
    shards, own = write_shards(), protocol()
    assert of_role(own, shards, None) is own
    assert (own.split, of_role(own, shards, "select").split) == ("test", "select")
