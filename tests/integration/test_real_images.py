"""The demo's model on real images: it was trained on generated patches, and must not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from his2lip.cli.train import run_train
from his2lip.config import load
from his2lip.data.images.codec import decode
from his2lip.serving import Classifier, ask, load_for_inference
from his2lip.serving.gates import NOT_ANSWERED
from his2lip.synthetic.twins import write_twin
from his2lip.training.config import TrainConfig


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demos_model_names_no_tissue_type_and_no_staining_of_a_real_image(
    shared: Path, ray_local: None, mlflow_store: str, tmp_path: Path
) -> None:
    write_twin("mihic", tmp_path / "mihic")
    places = {"storage": str(tmp_path), "data.shards": str(tmp_path / "mihic")}
    trained = run_train(load(TrainConfig, "train/demo_train.yaml", places))
    loaded = load_for_inference(str(trained.best))
    assert loaded.history.familiarity is not None
    classifier = Classifier(loaded.model, ask(biomarker="CD31"), history=loaded.history)
    files = [f for f in (shared / "real_ihc").rglob("*.*") if f.suffix in (".jpg", ".png")]
    assert len(files) > 40
    for file in files:
        pixels = decode(file.read_bytes())
        height, width = pixels.shape[:2]
        parts = [
            pixels[y : y + side, x : x + side]
            for side in (128, 256, 512)
            for y in range(0, height - side + 1, 256)
            for x in range(0, width - side + 1, 256)
        ]
        for row in classifier.classify([pixels, *parts]):
            assert {answer.label for answer in row.values()} == {NOT_ANSWERED}, file
