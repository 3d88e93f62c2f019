"""Validation in training: current weights, on a select split, and never on a report split."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from his2lip.data.shards.reader import ShardSet
from his2lip.errors import DatasetError
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.metrics import Predictions, accuracy, macro_f1
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.validation import SelectValidator
from his2lip.evaluation.zero_shot import score
from his2lip.models.load import load_model

Write = Callable[..., ShardSet]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_it_travels_by_pickle_and_answers_what_scoring_answers(
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
    assert found == {"macro_f1": macro_f1(wanted), "accuracy": accuracy(wanted)}


def test_it_sees_the_weights_of_the_moment_and_leaves_training_on(write_shards: Write) -> None:
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


def test_a_report_split_is_refused(write_shards: Write) -> None:
    shards = write_shards()
    with pytest.raises(DatasetError) as refused:
        SelectValidator(shards.uri, split="test")(load_model("tiny"))
    assert (refused.value.key, refused.value.where) == ("data.select", shards.uri)


def test_a_split_of_one_class_is_refused(write_shards: Write) -> None:
    with pytest.raises(DatasetError, match="holds 0 classes of biomarker"):
        SelectValidator(write_shards().uri, label="biomarker")(load_model("tiny"))
