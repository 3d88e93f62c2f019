"""Zero-shot validation of a model in training, on a split that may choose models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from his2lip import taxonomy
from his2lip.data.shards import LEARNING_ROLES, ShardSet, labelled_rows, open_shards, resolve_split
from his2lip.errors import DatasetError
from his2lip.evaluation.embeddings import encode_rows
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.metrics import Predictions, accuracy, macro_f1
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.zero_shot import score

if TYPE_CHECKING:
    from his2lip.models import DualEncoder


@dataclass(frozen=True)
class SelectValidator:
    """Macro F1 and accuracy of a model's current weights; nothing is cached, for they change every step.

    Holds names alone, so that it travels to workers. `label` is the column scored, over those of its classes
    that the split holds; `prompts` defaults to the prompt set of that name. Images are squashed to the input
    size: what a model in training sees.
    """

    shards: str
    split: str = "select"
    label: Literal["tissue", "biomarker"] = "tissue"
    prompts: str | None = None
    batch_size: int = 64
    threads: int = 2

    def __call__(self, model: DualEncoder) -> dict[str, float]:
        """macro_f1 and accuracy, fractions. Raises DatasetError for a `report` split: it chooses nothing."""
        shards = open_shards(self.shards)
        split = resolve_split(shards, self.split, roles=LEARNING_ROLES, key="data.select")
        rows, labels, classes = self._labelled(shards, split)
        prompts = PromptSet.load(self.prompts or self.label).narrow(classes)
        stream = encode_rows(
            ModelEncoder(model),
            shards,
            split,
            rows.tolist(),
            batch_size=self.batch_size,
            threads=self.threads,
        )
        images = np.concatenate([features for _, features in stream])
        sentences = SentenceEncoder(model)
        texts = [sentences.encode(list(lines)) for _, lines in prompts.sentences]
        predicted = score(images, texts, scoring=model.similarity).predicted
        found = Predictions(labels, predicted, classes)
        return {"macro_f1": macro_f1(found), "accuracy": accuracy(found)}

    def _labelled(self, shards: ShardSet, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Row numbers with a label, their class numbers, and the classes."""
        table = shards.table(split, [self.label])
        present = set(table[self.label].to_pylist())
        order = taxonomy.TISSUES if self.label == "tissue" else taxonomy.BIOMARKERS
        classes = [name for name in order if name in present]
        if len(classes) < 2:
            said = f"the split '{split}' holds {len(classes)} classes of {self.label}; validation needs two"
            raise DatasetError(said, where=self.shards)
        numbers = {name: number for number, name in enumerate(classes)}
        return *labelled_rows(table, self.label, numbers), classes
