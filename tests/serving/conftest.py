"""A small model, and the real IHC image as patches and shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.prepare.dataset import prepare
from his2lip.data.shards.reader import ShardSet, open_shards
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.set_num_threads(2)
    return load_model("tiny")


@pytest.fixture
def shards(real_ihc: np.ndarray, tmp_path: Path) -> ShardSet:
    """The real image in a user's dataset: one PNG in a folder, which `prepare` cuts into 16 tiles."""
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
    """The 16 squares of 128 px of the real image, row by row."""
    places = range(0, 512, 128)
    return [np.ascontiguousarray(real_ihc[y : y + 128, x : x + 128]) for y in places for x in places]


@pytest.fixture
def write_patches(tmp_path: Path) -> Callable[..., ShardSet]:
    """write_patches(images, tissue=[…], …) -> shards.

    A column is one value for all patches, or a list. The split is `select` by default.
    """

    def write(images: Sequence[np.ndarray], **columns: Any) -> ShardSet:
        splits = {name: {"role": name} for name in ("train", "select", "report")}
        card = Card.model_validate({"name": "real", "reader": "none", "splits": splits})
        with ShardWriter(tmp_path / "real", card=card) as writer:
            for number, image in enumerate(images):
                own = {k: v[number] if isinstance(v, list) else v for k, v in columns.items()}
                own = {"split": "select", "width": image.shape[1], "height": image.shape[0]} | own
                writer.add(
                    Patch(patch_id=f"real/{number}.png", image=encode_png(image), dataset="real", **own)
                )
        return open_shards(tmp_path / "real")

    return write
