"""Labels of one's own are trained on: swapping them changes the weights, and what cannot learn is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from his2lip.config import validate
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import ConfigError
from his2lip.models import load_model
from his2lip.training.config import TrainConfig
from his2lip.training.local import run_in_process
from his2lip.training.run_inputs import caption_notes, open_data

SWAPPED = {"positive": "negative", "negative": "positive", "polyp": "ulcer", "ulcer": "polyp"}


def write_own(
    folder: Path, labels: tuple[str, str], *, swap: bool = False, biomarker: str | None = "Ki67"
) -> str:
    """Sixteen patches of one tissue type and biomarker; those of the second label have a corner of DAB."""
    tree = {"name": "own", "reader": "folder", "stain": "DAB", "splits": {"train": {"role": "train"}}}
    rng = np.random.default_rng(0)
    with ShardWriter(folder, card=validate(Card, tree)) as writer:
        for number in range(16):
            image = np.full((64, 64, 3), (170, 160, 200), np.uint8)
            image[:4] = 245
            image[40:, : 24 * (number % 2)] = (110, 70, 40)
            image -= rng.integers(0, 12, image.shape, dtype=np.uint8)
            patch = Patch(
                patch_id=f"own/{number:02d}", image=encode_png(image), dataset="own", split="train", width=64,
                height=64, tissue="Tumor", biomarker=biomarker, label=labels[number % 2], stain="DAB",
            )  # fmt: skip
            writer.add(replace(patch, label=SWAPPED[labels[number % 2]]) if swap else patch)
    return str(folder)


def config(shards: str, **loss: object) -> TrainConfig:
    data = {"shards": shards, "batch_size": 8, "lanes": 1, "select": None, "loader": "local"}
    tree = {"data": data, "model": {"backbone": "tiny"}, "loss": loss, "optim": {"steps": 2, "lr": 1e-3}}
    return validate(TrainConfig, tree)


def weights(shards: str, folder: Path) -> torch.Tensor:
    run_in_process(config(shards, similarity={"finding": 1.0}), report=lambda metrics: None, folder=folder)
    state = load_model(folder / "best").state_dict()
    return torch.cat([tensor.float().flatten() for tensor in state.values()])


@pytest.mark.parametrize(
    "labels", [("negative", "positive"), pytest.param(("polyp", "ulcer"), marks=pytest.mark.slow)]
)
def test_swapping_the_labels_of_a_dataset_of_ones_own_changes_the_weights(
    tmp_path: Path, labels: tuple[str, str]
) -> None:
    first = weights(write_own(tmp_path / "a", labels), tmp_path / "run a")
    again = weights(write_own(tmp_path / "b", labels), tmp_path / "run b")
    swapped = weights(write_own(tmp_path / "c", labels, swap=True), tmp_path / "run c")
    assert torch.equal(first, again)
    assert not torch.equal(first, swapped)


def test_one_pair_whose_targets_are_all_equal_is_refused(tmp_path: Path) -> None:
    shards = write_own(tmp_path / "a", ("negative", "positive"))
    with pytest.raises(ConfigError) as refused:
        run_in_process(config(shards), report=lambda metrics: None)
    assert refused.value.key == "loss.similarity.finding"
    run_in_process(config(shards, terms="hard"), report=lambda metrics: None)
    with pytest.raises(ConfigError) as refused:  # as the second trial of a sweep of the terms
        run_in_process(config(shards), report=lambda metrics: None)
    assert refused.value.key == "loss.similarity.finding"


def test_patches_without_a_biomarker_have_targets_of_their_own_and_are_trained_on(tmp_path: Path) -> None:
    shards = write_own(tmp_path / "a", ("negative", "positive"), biomarker=None)
    run_in_process(config(shards), report=lambda metrics: None)


def test_captions_that_cannot_know_the_staining_are_counted_before_training(tmp_path: Path) -> None:
    shards = write_own(tmp_path / "a", ("negative", "positive"))
    bank = tmp_path / "captions/Tumor"
    bank.mkdir(parents=True)
    (bank / "Ki67.txt").write_text("Brown nuclei.\n\nMany brown nuclei in nests.\n")
    asked = config(shards).model_copy(
        update={"data": config(shards).data.model_copy(update={"captions": str(bank.parent)})}
    )
    *_, blind = caption_notes(*open_data(asked))
    assert "16 patches" in blind
    assert "8 of these patches are labelled negative" in blind
    assert caption_notes(*open_data(config(shards))) == []
