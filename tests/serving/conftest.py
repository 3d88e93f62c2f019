"""A small model and the real IHC image as patches, for the tests of using a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from his2lip.data.cards import Card
from his2lip.data.images import encode_png
from his2lip.data.prepare import prepare
from his2lip.data.shards import ShardSet, open_shards
from his2lip.models import DualEncoder, load_model


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.set_num_threads(2)
    return load_model("tiny")


@pytest.fixture
def shards(real_ihc: np.ndarray, tmp_path: Path) -> ShardSet:
    """The FHL2-stained colon as its user would bring it: a PNG in a folder, cut into 16 tiles by prepare."""
    folder = tmp_path / "published" / "FHL2"
    folder.mkdir(parents=True)
    (folder / "colon.png").write_bytes(encode_png(real_ihc))
    card = Card.model_validate(
        {
            "name": "colon",
            "reader": "folder",
            "splits": {"train": {"role": "train"}},
            "classes": {"FHL2": []},
        }
    )
    report = prepare(card, tmp_path / "published", tmp_path / "shards", view="tiles(size=128, tissue=0)")
    assert (report.found, report.read, list(report.quarantined)) == (1, 1, [])
    return open_shards(tmp_path / "shards")


@pytest.fixture(scope="session")
def real_tiles(real_ihc: np.ndarray) -> Sequence[np.ndarray]:
    """The image's 16 squares of 128 px, in reading order."""
    places = range(0, 512, 128)
    return [np.ascontiguousarray(real_ihc[y : y + 128, x : x + 128]) for y in places for x in places]
