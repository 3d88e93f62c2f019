"""What this package computes on a GPU, against the CPU. Skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_factory import CAPTIONS, dual, hf_dual, native_config
from training_data import write_small_shards

from his2lip.config import validate
from his2lip.data.shards import open_shards
from his2lip.evaluation.embeddings import encode_rows
from his2lip.evaluation.encoders import ModelEncoder
from his2lip.loss import LossWeights, SimilarityWeights, WISELoss
from his2lip.models import DualEncoder, load_model
from his2lip.models.resume import ResumeState, load_resume
from his2lip.training.build import build_model, checkpoint_writer, prepare_process
from his2lip.training.config import TrainConfig
from his2lip.training.loop import Outcome, fit
from his2lip.training.run_directory import RunDir
from his2lip.training.run_inputs import open_data
from his2lip.training.source import StreamSource

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("small") / "shards", train=112, select=32)


def models(tmp_path: Path) -> dict[str, DualEncoder]:
    return {
        "clip": dual().eval(),
        "custom text": dual(native_config(custom_text=True)).eval(),
        "biomedclip": hf_dual(tmp_path).eval(),
        "tiny": load_model("tiny").eval(),
    }


def batch(n: int, d: int = 64) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, d, generator=draws) for _ in range(2))
    labels = [torch.randint(-1, most, (n,), generator=draws) for most in (7, 12, 3)]
    return [image, text, *labels]


@pytest.mark.parametrize("method", ["linear", "reference"])
@pytest.mark.parametrize("tile", [None, 100])
@pytest.mark.parametrize("finding", [0.0, 1.0])
def test_the_loss_and_its_gradients_are_those_of_the_cpu(
    method: Any, tile: int | None, finding: float
) -> None:
    found = []
    for device in ("cpu", "cuda"):
        image, text, tissue, biomarker, own = (t.to(device) for t in batch(300))
        image.requires_grad_()
        text.requires_grad_()
        scale = torch.tensor(2.6592, device=device, requires_grad=True)
        loss = WISELoss(
            weights=LossWeights(image_text=1, image_image=0.5, text_text=0.25),
            similarity=SimilarityWeights(finding=finding), method=method, tile=tile,
        )  # fmt: skip
        output = loss(image, text, tissue, biomarker, scale, finding=own)
        output.total.backward()
        found.append([*output.metrics().values(), image.grad.cpu(), text.grad.cpu(), scale.grad.cpu()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["clip", "custom text", "biomedclip", "tiny"])
def test_features_are_those_of_the_cpu_and_in_bf16_but_for_rounding(kind: str, tmp_path: Path) -> None:
    model = models(tmp_path)[kind]
    images = torch.randn(5, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = model.encode_image(images), model.encode_text(CAPTIONS)
        model.to(GPU)
        found = model.encode_image(images).cpu(), model.encode_text(CAPTIONS).cpu()
        model.precision = "bf16"
        lowered = model.lowered()
        assert lowered is not model
        low = lowered.encode_image(images).cpu(), lowered.encode_text(CAPTIONS).cpu()
    for one, other, less in zip(exact, found, low, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert 0 < (one - less).norm(dim=1).max() < 3e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_split_is_embedded_in_order_and_as_one_by_one(shards: str, precision: Any) -> None:
    """Features are begun ahead on a GPU: none may be exchanged, also with batches of other sizes."""
    model = load_model("tiny", device="cuda", precision=precision).eval().lowered()
    encoder, own = ModelEncoder(model), open_shards(shards)
    rows = list(range(112)) if precision == "fp32" else list(range(0, 112, 3))
    alone = dict(encode_rows(encoder, own, "train", rows, batch_size=1))
    for size in (4, 16, 64):
        found = list(encode_rows(encoder, own, "train", rows, batch_size=size, threads=4))
        assert [row for row, _ in found] == rows
        for row, features in found:
            tolerance = 1e-4 if precision == "fp32" else 5e-2
            np.testing.assert_allclose(features, alone[row], atol=tolerance * np.abs(alone[row]).max())


def config_of(shards: str, precision: str, **sections: Any) -> TrainConfig:
    tree = {
        "data": {
            "shards": shards,
            "batch_size": 16,
            "lanes": 4,
            "loader": "local",
            **sections.pop("data", {}),
        },
        "workers": {"threads": 2},
        "model": {"precision": precision, **sections.pop("model", {})},
        "optim": {"lr": 1e-3, "epochs": 4, "warmup": 0.1, **sections.pop("optim", {})},
        **sections,
    }
    config, _, _ = open_data(validate(TrainConfig, tree))
    return config


def train(
    config: TrainConfig, device: torch.device, *, model: DualEncoder | None = None, **options: Any
) -> tuple[Outcome, DualEncoder]:
    prepare_process(config, device)
    model = model or build_model(config, device)
    _, _, bank = open_data(config)
    source = StreamSource(config, bank, preprocess=model.preprocess)
    loss = WISELoss.from_config(config.loss)
    try:
        return fit(config, model, loss, source, report=lambda _: None, device=device, **options), model
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optim": {"micro_batch": 4}},
        {"finetune": {"freeze": "text"}},
        {"finetune": {"freeze": "image"}, "data": {"augment": False}},
        {"finetune": {"freeze": "image", "lora": {"rank": 2}}},
        {"finetune": {"gradient_checkpointing": True}},
        {"model": {"compile": True}},
        {"model": {"compile": True}, "optim": {"micro_batch": 8}},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_as_on_the_cpu(shards: str, precision: str, sections: dict[str, Any]) -> None:
    found, there = train(config_of(shards, precision, **sections), GPU)
    plain = {name: section for name, section in sections.items() if name != "model"}
    expected, _ = train(config_of(shards, "fp32", **plain), torch.device("cpu"))
    assert there.device.type == "cuda"
    assert there.precision == precision
    ours, theirs = (o.state.history[-1]["select/excess"] for o in (found, expected))
    assert ours == pytest.approx(theirs, rel=0.05 if precision == "fp32" else 0.2)


def test_a_resumed_run_goes_on_where_it_stopped(shards: str, tmp_path: Path) -> None:
    """To the last bits only on the CPU: some of CUDA's sums have no fixed order."""
    config = config_of(shards, "bf16", storage=str(tmp_path))
    config, own, bank = open_data(config)
    whole, _ = train(config, GPU)
    run = RunDir(tmp_path / "run")
    save = checkpoint_writer(run, config, own, bank)
    stops: list[int] = []

    def until_two(model: DualEncoder, resume: ResumeState, metrics: dict[str, float], best: bool) -> None:
        stops.append(resume.step)
        if len(stops) <= 2:
            save(model, resume, metrics, best)

    train(config, GPU, save=until_two)
    saved = load_resume(run.last)
    assert saved is not None
    assert saved.step == stops[1] < stops[-1]
    model = build_model(config, GPU, source=run.last)
    resumed, _ = train(config, GPU, model=model, resume=saved)
    assert resumed.state.step == whole.state.step
    assert resumed.state.history[-1]["select/excess"] == pytest.approx(
        whole.state.history[-1]["select/excess"], rel=0.02
    )
