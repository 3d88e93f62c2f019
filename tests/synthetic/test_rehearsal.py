"""A rehearsal is prepared like the real dataset, and its shards are always marked as generated."""

from __future__ import annotations

from pathlib import Path

import pytest

from his2lip.data.cards.card import list_cards, load_card
from his2lip.data.cards.terms import terms_of
from his2lip.data.check.dataset import check
from his2lip.data.prepare.dataset import prepare
from his2lip.data.readers.base import GENERATED
from his2lip.data.shards.reader import open_shards
from his2lip.errors import ConfigError, DatasetError
from his2lip.synthetic.rehearsal import write_rehearsal


@pytest.mark.parametrize("name", list_cards())
def test_every_layout_can_be_rehearsed(tmp_path: Path, name: str) -> None:
    assert write_rehearsal(name, tmp_path / name)
    card = load_card(name)
    report = prepare(card, tmp_path / name, tmp_path / "out")
    assert report.quarantined == report.left_out == []
    assert report.found == report.read + report.passed_over.total() > 0
    assert report.read > 0
    assert {label for of_split in report.info.counts.values() for label in of_split} == set(card.classes)
    carved = {split for rule in card.carve for split in (rule.source, rule.into)}
    assert report.info.roles.items() <= card.roles.items()
    assert card.roles.keys() - carved <= report.info.roles.keys(), (
        "a carve of few cases may leave a split empty"
    )
    info = open_shards(tmp_path / "out").info
    assert info.generated
    assert terms_of(info).datasets == {f"{name}-generated": "none, generated"}
    assert check(tmp_path / "out").problems == []


def test_shards_made_of_any_folder_of_a_rehearsal_are_marked_as_generated(tmp_path: Path) -> None:
    write_rehearsal("mihic", tmp_path / "in")
    for folder in (p for p in (tmp_path / "in").rglob("*") if any(q.suffix == ".png" for q in p.glob("*"))):
        assert (folder / GENERATED).is_file()
    (tmp_path / "in" / GENERATED).unlink()
    report = prepare(load_card("mihic"), tmp_path / "in/MIHIC_dataset/dataset", tmp_path / "out")
    assert report.info.generated


def test_the_same_rehearsal_is_kept_and_another_one_in_its_folder_is_refused(tmp_path: Path) -> None:
    assert write_rehearsal("bcdata", tmp_path / "a/bcdata")
    files = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*.png")}
    assert not write_rehearsal("bcdata", tmp_path / "a/bcdata")
    assert write_rehearsal("bcdata", tmp_path / "b/bcdata")
    assert all(
        (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == files[path] for path in files
    )
    with pytest.raises(DatasetError) as in_use:
        write_rehearsal("bcdata", tmp_path / "a/bcdata", seed=1)
    assert (in_use.value.key, in_use.value.where) == ("--out", tmp_path / "a/bcdata")


def test_a_rehearsal_of_an_unknown_dataset_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        write_rehearsal("mihik", tmp_path / "mihik")
    assert refused.value.key == "mihik"
    assert "'mihic'" in str(refused.value.fix)
    assert not (tmp_path / "mihik").exists()
