"""A frozen tower encodes each caption or image once per run, and the losses stay what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_factory import dual
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.data.stream.batch import Batch
from his2lip.loss import WISELoss
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.load import load_model
from his2lip.training import loop
from his2lip.training.build import build_model
from his2lip.training.config import TrainConfig
from his2lip.training.frozen import FrozenFeatures
from his2lip.training.loop import fit
from his2lip.training.progress import StepReport
from his2lip.training.run_inputs import open_data
from his2lip.training.source import StreamSource

CPU = torch.device("cpu")
TRAIN, SELECT, EPOCHS = 64, 16, 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("frozen")
    return {
        "data": {
            "shards": write_small_shards(folder / "shards", train=TRAIN, select=SELECT, size=32),
            "batch_size": 16,
            "lanes": 4,
            "loader": "local",
        },
        "model": {"backbone": str(save_checkpoint(folder / "clip", dual(), meta={}))},
        "optim": {"lr": 1e-3, "epochs": EPOCHS},
        "log_every": 1,
    }


class Counted(StreamSource):
    """A source that keeps the captions that the loop was given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.captions: list[str] = []

    def train(self, start: int, stop: int) -> Any:
        return map(self._seen, super().train(start, stop))

    def select(self) -> Any:
        return map(self._seen, super().select())

    def _seen(self, batch: Batch) -> Batch:
        self.captions += batch.captions
        return batch


def trained(
    tree: dict[str, Any], finetune: dict[str, Any], *, augment: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, int], list[str], list[float]]:
    """(rows that went through each tower, captions that were drawn, losses) of a run."""
    data = tree["data"] | {"augment": augment}
    config, _, bank = open_data(validate(TrainConfig, tree | {"data": data, "finetune": finetune}))
    model = build_model(config, CPU)
    rows = {"image": 0, "text": 0}

    def counting(tower: str) -> Any:
        encode = getattr(DualEncoder, f"encode_{tower}")

        def counted(self: DualEncoder, inputs: Any, **options: Any) -> torch.Tensor:
            rows[tower] += len(inputs)
            return encode(self, inputs, **options)

        return counted

    with monkeypatch.context() as patch:
        for tower in rows:
            patch.setattr(DualEncoder, f"encode_{tower}", counting(tower))
        source = Counted(config, bank, preprocess=model.preprocess)
        losses: list[float] = []

        def report(progress: StepReport) -> None:
            losses.extend(v for k, v in progress.metrics.items() if k.endswith("/loss"))

        fit(config, model, WISELoss.from_config(config.loss), source, report=report)
    return rows, source.captions, losses


def without_features(patch: pytest.MonkeyPatch) -> None:
    """The loop as it is for trained towers."""
    patch.setattr(loop, "frozen_features", lambda model, tower: None)


def test_each_distinct_caption_goes_through_a_frozen_text_tower_once(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, drawn, losses = trained(tree, {"freeze": "text"}, augment=True, monkeypatch=monkeypatch)
    assert len(drawn) == EPOCHS * (TRAIN + SELECT) > len(set(drawn))
    assert rows == {"image": EPOCHS * (TRAIN + SELECT), "text": len(set(drawn))}
    with monkeypatch.context() as patch:
        without_features(patch)
        _, _, plain = trained(tree, {"freeze": "text"}, augment=True, monkeypatch=patch)
    assert losses == pytest.approx(plain, abs=2e-5)


def test_each_image_goes_through_a_frozen_image_tower_once_where_it_is_not_augmented(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, drawn, losses = trained(tree, {"freeze": "image"}, augment=False, monkeypatch=monkeypatch)
    assert rows == {"image": TRAIN + SELECT, "text": len(drawn)}
    with monkeypatch.context() as patch:
        without_features(patch)
        _, _, plain = trained(tree, {"freeze": "image"}, augment=False, monkeypatch=patch)
    assert losses == pytest.approx(plain, abs=2e-5)
    rows, _, _ = trained(tree, {"freeze": "image"}, augment=True, monkeypatch=monkeypatch)
    assert rows["image"] == EPOCHS * TRAIN + SELECT, "an augmented image is another one in each epoch"


@pytest.mark.parametrize(
    "finetune", [{}, {"lora": {"rank": 2}}, {"freeze": "text", "projection": "released"}]
)
def test_towers_that_are_trained_encode_every_image_and_caption(
    finetune: dict[str, Any], tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, drawn, _ = trained(tree, finetune, augment=False, monkeypatch=monkeypatch)
    assert rows == {"image": EPOCHS * (TRAIN + SELECT), "text": len(drawn)}


def test_a_feature_does_not_depend_on_what_is_encoded_beside_it() -> None:
    model = load_model("tiny", seed=3)
    images = torch.randn(21, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def features(order: list[int], at_once: int) -> torch.Tensor:
        frozen = FrozenFeatures(lambda x: model.encode_image(x, normalize=False), group=8)
        keys = [str(i) for i in order]
        for start in range(0, len(order), at_once):
            part = order[start : start + at_once]
            frozen(keys[start : start + at_once], lambda places, part=part: images[[part[i] for i in places]])
        return frozen([str(i) for i in range(len(images))], lambda places: images[places])

    first = features(list(range(21)), 21)
    torch.testing.assert_close(first, model.encode_image(images, normalize=False).detach())
    assert torch.equal(first, features(torch.randperm(21).tolist(), 5))
