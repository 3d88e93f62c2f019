"""The paper's three runs: their options, and (slow) that they train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_factory import BIOMEDCLIP, hf_model, published_open_clip, published_plip, wordpiece_folder

from his2lip import resources
from his2lip.config import load
from his2lip.data.captions import templates as caption_templates
from his2lip.models.load import load_model
from his2lip.models.preprocess import RELEASED_PREPROCESS
from his2lip.models.provenance import read_meta
from his2lip.taxonomy import MIHIC_BIOMARKERS, TISSUES
from his2lip.training.config import TrainConfig

FILE = "train/his2lip.yaml"
# The overrides of each run, as in README.md and in the file.
RUNS = {
    "his2clip": [],
    "his2plip": ["name=his2plip", "model.backbone=plip"],
    "his2biomedclip": ["name=his2biomedclip", "model.backbone=biomedclip"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_the_paper_has_the_released_hyper_parameters(name: str) -> None:
    config = load(TrainConfig, resources.find(FILE), RUNS[name])
    assert (config.name, config.model.backbone) == (name, name.removeprefix("his2"))
    optim, loss = config.optim, config.loss
    assert (optim.lr, optim.weight_decay, optim.warmup, optim.grad_clip) == (2e-5, 0.01, 0.01, 1.0)
    assert (loss.variant, loss.terms, loss.scoring) == ("released", "full", "dot")
    assert loss.weights.model_dump() == {"image_text": 1.0, "image_image": 0.5, "text_text": 0.5}
    assert (config.model.preprocessing, config.finetune.projection) == ("released", "released")
    assert (config.data.missing, config.data.sampling) == ("drop", "released")
    assert not config.data.augment.turns


@pytest.fixture(scope="module")
def mihic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in the layout of MIHIC, prepared, and captions in that of the released corpus."""
    folder = tmp_path_factory.mktemp("mihic")
    for tissue in TISSUES[:-1]:
        for biomarker in MIHIC_BIOMARKERS:
            file = folder / "AugmentedCaptions" / tissue / f"{biomarker}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(caption_templates.sentences(tissue, biomarker)))
    his2lip(
        folder, "data", "synthesize", "--layout", "--datasets", "mihic", "--scale", "2", "--out", "layouts"
    )
    his2lip(folder, "data", "prepare", "mihic", "--root", "layouts/mihic", "--out", "runs/shards/mihic")
    his2lip(folder, "data", "prepare", "captions", "--root", "AugmentedCaptions", "--out", "captions.json")
    return folder


def his2lip(folder: Path, *words: str) -> str:
    """The output of a `his2lip` command that runs in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(Path(resources.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "his2lip", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def random_weights(name: str, folder: Path) -> str:
    """Random weights of the real architecture, in the format that its authors publish."""
    if name == "his2clip":
        return "ViT-B-32-quickgelu"
    if name == "his2plip":
        return str(published_plip(folder / "plip", hf_model(text_config={"eos_token_id": 2})))
    return str(published_open_clip(wordpiece_folder(folder / "biomedclip"), BIOMEDCLIP))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_papers_run_starts_and_trains_on_mihics_layout(name: str, mihic: Path, tmp_path: Path) -> None:
    said = his2lip(
        mihic,
        *("train", FILE, f"name={name}", f"storage={tmp_path}", "data.captions=captions.json"),
        f"model.backbone={random_weights(name, tmp_path)}",
        *("data.batch_size=8", "optim.steps=2", "log_every=1", "workers.threads=2"),
    )
    assert "left out" in said  # the tissue type that has no captions
    best = tmp_path / "train" / name / "best"
    meta = read_meta(best)
    assert meta["step"] == 2
    assert 0 <= meta["metrics"]["select/macro_f1"] <= 1
    model = load_model(best)
    assert (model.preprocess, model.similarity, model.dim) == (RELEASED_PREPROCESS, "dot", 512)
    assert model.tokenizer.context_length == (256 if name == "his2biomedclip" else 77)
    assert not any("parametrizations" in key for key in model.clip.state_dict())
    features = model.encode_image(torch.randn(1, 3, 224, 224), normalize=False)
    assert features.isfinite().all()
