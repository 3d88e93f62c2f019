"""The page of a checked dataset: one file, small pictures, and every name escaped."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from markupsafe import escape

from his2lip.cli.data import check_dataset
from his2lip.data.cards import Card, terms_of
from his2lip.data.images.codec import decode, encode_png
from his2lip.data.shards import Patch, ShardWriter, open_shards
from his2lip.errors import ConfigError, DatasetError

EVIL = '<script>alert("x")</script>'
SPLITS = {"train": {"role": "train", "groups": "case"}, "test": {"role": "report", "groups": "case"}}


@pytest.fixture
def shards(real_ihc: np.ndarray, tmp_path: Path) -> Path:
    """Twenty real patches of two classes. One class is named by a script, and one case is in two splits."""
    card = Card.model_validate(
        {"name": "toy", "reader": "folder", "splits": SPLITS, "licence": {"name": EVIL}}
    )
    with ShardWriter(tmp_path / "toy", card=card) as writer:
        for i in range(20):
            y, x = divmod(i, 5)
            pixels = real_ihc[96 * y : 96 * y + 96, 96 * x : 96 * x + 96]
            writer.add(
                Patch(
                    patch_id=f"toy/{EVIL}{i}.png",
                    image=encode_png(pixels),
                    dataset="toy",
                    split="test" if i % 5 == 0 else "train",
                    case_id="leaking" if i in (0, 1) else f"case {i}",
                    label=EVIL if i % 2 else "plain",
                    stain="DAB",
                    width=96,
                    height=96,
                )
            )
    return tmp_path / "toy"


def test_page_shows_pictures_leaks_and_stains_and_escapes_names(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):  # a case leaks
        check_dataset(str(shards), page=tmp_path / "pages")
    assert "problem: 1 case is in test and train" in capsys.readouterr().out
    page = (tmp_path / "pages/toy.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page), "no other file is loaded"
    pictures = [base64.b64decode(p) for p in re.findall(r"base64,([^\"]+)", page)]
    assert len(pictures) == 12, "six of each class"
    assert all(max(decode(p).shape) <= 96 for p in pictures)
    assert "<td>cases</td>" in page
    (note, *_) = terms_of(open_shards(shards).info).notes()
    assert f'<li class="">{escape(note)}' in page, "the terms are listed with the findings"
    assert "<td>DAB</td><td>20</td>" in page


def test_a_card_is_checked_by_name_and_has_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_dataset("mihic")
    assert "no problem found" in capsys.readouterr().out
    with pytest.raises(ConfigError) as refused:
        check_dataset("mihic", page=tmp_path / "x.html")
    assert refused.value.key == "--page"


@pytest.mark.parametrize("page", ["file/x.html", "file/x", "folder.html"])
def test_page_that_cannot_be_written_is_refused_before_shards_are_read(
    tmp_path: Path, shards: Path, page: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder.html").mkdir()
    for part in shards.rglob("*.parquet"):
        part.write_bytes(b"nothing is read")
    with pytest.raises(ConfigError) as refused:
        check_dataset(str(shards), page=tmp_path / page)
    assert refused.value.key == "--page"


def test_a_check_that_fails_leaves_no_empty_page(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        check_dataset(str(tmp_path / "nowhere"), page=tmp_path / "pages" / "x.html")
    assert not list(tmp_path.iterdir())


def test_a_users_card_whose_prompts_lack_a_class_has_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "mine.yaml"
    card.write_text(
        "name: mine\nreader: folder\nclasses: {x: [], y: []}\nsplits: {test: {role: report}}\n"
        "protocols: {default: {split: test, label: label, classes: {x: [x], y: [y]}, prompts: staining, "
        "basis: ours}}\n"
    )
    with pytest.raises(typer.Exit):
        check_dataset(str(card))
    assert "problem: protocols.default.prompts: " in capsys.readouterr().out, "the prompts have no class x"
