"""Validation in training: of the current weights, on a select split, and never on a report split."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from real_tiles import tiles

from his2lip.config import validate
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.reader import ShardSet
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.metrics import Predictions, accuracy, macro_f1
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.validation import SelectValidator
from his2lip.evaluation.zero_shot import score
from his2lip.models.load import load_model
from his2lip.training.build import build_model
from his2lip.training.config import TrainConfig
from his2lip.training.local import run_in_process
from his2lip.training.run_inputs import identity, open_data

Write = Callable[..., ShardSet]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_pickled_validator_gives_the_figures_of_zero_shot_scoring(
    write_shards: Write, tmp_path_factory: pytest.TempPathFactory, similarity: Literal["cosine", "dot"]
) -> None:
    torch.set_num_threads(2)
    shards, model = write_shards(), load_model("tiny", seed=1)  # cosine and dot product differ here
    model.similarity = similarity
    found = pickle.loads(pickle.dumps(SelectValidator(shards.uri)))(model)
    cache = EmbeddingCache(str(tmp_path_factory.mktemp("cache")))
    embedded = cache.embed(ModelEncoder(model), shards, "select")
    classes = ["Stroma", "Tumor"]
    texts = [
        SentenceEncoder(model).encode(list(s)) for _, s in PromptSet.load("tissue").narrow(classes).sentences
    ]
    labels = np.array([classes.index(t) for t in embedded.table["tissue"].to_pylist()])
    wanted = Predictions(labels, score(embedded.features, texts, scoring=similarity).predicted, classes)
    assert found == {"macro_f1": macro_f1(wanted.counts), "accuracy": accuracy(wanted.counts)}


def test_it_scores_the_current_weights_and_restores_training_mode(write_shards: Write) -> None:
    validator, model = SelectValidator(write_shards().uri), load_model("tiny").train()
    first = validator(model)
    with torch.no_grad():
        for parameter in model.clip.visual.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    second = validator(model)
    model.load_state_dict(load_model("tiny").state_dict())
    assert validator(model) == first
    assert model.training
    assert set(second) == {"macro_f1", "accuracy"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_retrieval_of_a_collapsed_model_does_not_depend_on_the_order_of_the_patches(
    real_ihc: np.ndarray, tmp_path: Path
) -> None:
    """All similarities are equal, so the order decides; rows of a split are often sorted by class."""
    splits = {"select": {"role": "select"}}
    card = Card.model_validate({"name": "toy", "reader": "none", "splits": splits})
    patches = [
        Patch(patch_id=f"toy/{i}.png", image=encode_png(tile), dataset="toy", split="select", biomarker="CD3",
              tissue="Tumor" if i < 8 else "Stroma", width=64, height=64, mpp=0.5)
        for i, tile in enumerate(tiles(real_ihc)[:24])
    ]  # fmt: skip
    model, found = load_model("tiny"), []
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter.zero_()
    captions = (("T cells in the tumor.", "Tumor", "CD3"), ("T cells in the stroma.", "Stroma", "CD3"))
    for name, order in (("by-class", patches), ("mixed", patches[::2] + patches[1::2])):
        with ShardWriter(tmp_path / name, card=card) as writer:
            for patch in order:
                writer.add(patch)
        found.append(SelectValidator(str(tmp_path / name), captions=captions)(model)["retrieval"])
    assert found[0] == found[1]


def test_captions_none_of_which_is_of_a_shown_pair_are_refused_before_training(write_shards: Write) -> None:
    shards = write_shards(biomarker="CD3")
    captions = (("T cells in the tumor.", "Tumor", "CD3"), ("T cells in the stroma.", "Stroma", "CD3"))
    assert 0 < SelectValidator(shards.uri, captions=captions).check()(load_model("tiny"))["retrieval"] <= 1
    others = (("B cells in the tumor.", "Tumor", "CD20"), ("T cells in mucosa.", "Mucosa", "CD3"))
    with pytest.raises(ConfigError) as refused:
        SelectValidator(shards.uri, captions=others).check()
    assert (refused.value.where, refused.value.key) == (shards.uri, "data.select_captions")
    SelectValidator(shards.uri, captions=(*others, captions[0])).check()


def test_a_report_split_is_refused(write_shards: Write) -> None:
    shards = write_shards()
    with pytest.raises(DatasetError) as refused:
        SelectValidator(shards.uri, split="test")(load_model("tiny"))
    assert (refused.value.key, refused.value.where) == ("data.select", shards.uri)


def labelled_shards(
    folder: Path,
    images: list[np.ndarray],
    *,
    protocols: bool = True,
    biomarkers: tuple[str, ...] = ("CD3", "CD20"),
    **changes: str,
) -> str:
    """Shards with the labels `dark` and `pale`, without tissue types; `changes` are of their protocol."""
    folder.mkdir(exist_ok=True)
    prompts = folder / "prompts.yaml"
    prompts.write_text("classes: {dark: [a dark patch], pale: [a pale patch]}")
    protocol = {
        "split": "test",
        "label": "label",
        "classes": {"dark": ["dark"], "pale": ["pale"]},
        "prompts": str(prompts),
        "basis": "ours",
        **changes,
    }
    splits = {"train": {"role": "train"}, "select": {"role": "select"}, "test": {"role": "report"}}
    card = Card.model_validate(
        {
            "name": "own-labels",
            "reader": "none",
            "splits": splits,
            "protocols": {"default": protocol, "max": protocol | {"pooling": "max"}} if protocols else {},
        }
    )
    median = float(np.median([image.mean() for image in images]))
    with ShardWriter(folder / "own", card=card) as writer:
        for number, image in enumerate(images):
            writer.add(
                Patch(
                    patch_id=f"own/{number}.png",
                    image=encode_png(image),
                    dataset="own-labels",
                    split=list(splits)[number % 3],
                    label="dark" if image.mean() < median else "pale",
                    biomarker=biomarkers[number // 3 % len(biomarkers)],
                    width=image.shape[1],
                    height=image.shape[0],
                )
            )
    return str(folder / "own")


@pytest.fixture
def own_labels(tmp_path: Path, real_ihc: np.ndarray) -> str:
    return labelled_shards(tmp_path, tiles(real_ihc)[:48])


def test_labels_without_tissue_types_are_validated_by_the_protocol_of_the_card(own_labels: str) -> None:
    config = validate(
        TrainConfig,
        {
            "data": {"shards": own_labels, "batch_size": 8, "lanes": 2},
            "checkpoint": {"select_by": "macro_f1"},
            "optim": {"epochs": 1},
        },
    )
    validator = SelectValidator(own_labels).check()
    (Path(own_labels).parent / "prompts.yaml").unlink()  # a worker need not see the prompts' file
    reported: list[Mapping[str, float]] = []
    outcome = run_in_process(config, report=reported.append, validate=validator)
    assert 0 <= outcome.metrics["select/macro_f1"] <= 1
    assert reported[-1]["select/macro_f1"] == outcome.metrics["select/macro_f1"]


def test_prompts_of_one_s_own_that_choose_the_best_checkpoint_are_part_of_the_run(own_labels: str) -> None:
    def made_of(select_by: str) -> dict[str, Any]:
        tree = {"data": {"shards": own_labels}, "checkpoint": {"select_by": select_by}}
        run = open_data(validate(TrainConfig, tree))
        return dict(identity(*run, validator=SelectValidator(own_labels).check())["made_of"])

    prompts = Path(own_labels).parent / "prompts.yaml"
    first, by_loss = made_of("macro_f1"), made_of("loss")
    assert made_of("macro_f1") == first
    prompts.write_text(prompts.read_text().replace("a dark", "a darkly stained"))
    assert made_of("macro_f1") != first
    assert made_of("loss") == by_loss, "the prompts choose nothing"


def test_a_protocol_of_one_s_own_card_that_chooses_the_best_checkpoint_is_part_of_the_run(
    tmp_path: Path, real_ihc: np.ndarray
) -> None:
    def made_of(folder: str, select_by: str = "macro_f1", **protocol: str) -> dict[str, Any]:
        shards = labelled_shards(tmp_path / folder, tiles(real_ihc)[:24], **protocol)
        tree = {"data": {"shards": shards}, "checkpoint": {"select_by": select_by}}
        run = open_data(validate(TrainConfig, tree))
        return dict(identity(*run, validator=SelectValidator(shards).check())["made_of"])

    first = made_of("a")
    assert made_of("b", note="another remark") == first
    assert made_of("c", pooling="max") != first
    assert made_of("d", pooling="max")["data"] == first["data"], "the shards' digest does not tell"
    assert made_of("e", "loss", pooling="max") == made_of("f", "loss"), "the protocol chooses nothing"


def test_a_protocol_is_chosen_by_name_and_an_unknown_name_is_refused(own_labels: str) -> None:
    SelectValidator(own_labels, protocol="max").check()
    with pytest.raises(ConfigError) as refused:
        SelectValidator(own_labels, protocol="mix").check()
    assert (refused.value.where, refused.value.key) == (own_labels, "data.protocol")


def test_a_dataset_without_protocol_and_tissue_types_is_refused(tmp_path: Path, real_ihc: np.ndarray) -> None:
    shards = labelled_shards(tmp_path, tiles(real_ihc)[:12], protocols=False, biomarkers=("CD3",))
    with pytest.raises(DatasetError) as refused:
        SelectValidator(shards).check()
    assert refused.value.key == "data.select"


def test_released_preprocessing_is_the_same_in_training_and_evaluation() -> None:
    config = validate(TrainConfig, {"data": {"shards": "-"}, "model": {"preprocessing": "released"}})
    trained = build_model(config, torch.device("cpu"))
    plain = load_model("tiny", seed=config.seed)
    assert ModelEncoder(plain, preprocessing="released").key == ModelEncoder(trained).key
