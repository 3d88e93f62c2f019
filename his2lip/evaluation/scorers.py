"""A dual encoder as a scorer of the grid: zero-shot classification of cached features."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from his2lip.data.shards import open_shards
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.grid_cell import CellPlan
from his2lip.evaluation.overlap import Overlap, overlap
from his2lip.evaluation.protocols import view_of
from his2lip.evaluation.zero_shot import Scores, score

if TYPE_CHECKING:
    from his2lip.models import DualEncoder, TrainingRecord


class ModelScorer:
    """Zero-shot classification by one model. The cache embeds each image and sentence once."""

    uses_prompts = True

    def __init__(
        self,
        name: str,
        model: DualEncoder,
        cache: EmbeddingCache,
        *,
        record: TrainingRecord | None = None,
        declared: Collection[str] | None = None,
        batch_size: int = 64,
        threads: int = 2,
    ) -> None:
        """
        record    what the model was trained on; with it, the model also counts as trained on every dataset
                  whose card has `in_domain: true`
        declared  names in the benchmark of the datasets that it was trained on; None: as its record says
        """
        self.name = name
        self.weights = model.tensor_digest()
        self._model, self._cache = model, cache
        self._record, self._declared = record, declared
        self._batch_size, self._threads = batch_size, threads
        self._sentences = SentenceEncoder(model, weights=self.weights)

    def identity(self, plan: CellPlan) -> str:
        return self._encoder(plan).key

    def trained_on(self, plan: CellPlan) -> bool:
        if self._declared is not None:
            return plan.dataset in self._declared
        known = self._record
        if known is None:
            return False
        return plan.in_domain or plan.origin in known.datasets or plan.data_digest in known.digests

    def overlap(self, plan: CellPlan) -> Overlap | None:
        return overlap(self._record, plan.selection)

    def cut_prompts(self, plan: CellPlan) -> int:
        return len(self._model.tokenizer.too_long(plan.prompts.all_sentences()))

    def score(self, plan: CellPlan) -> Scores:
        shards, selection = open_shards(plan.uri), plan.selection
        embedded = self._cache.embed(
            self._encoder(plan),
            shards,
            plan.protocol.split,
            rows=selection.rows,
            batch_size=self._batch_size,
            threads=self._threads,
        )
        lines = plan.prompts.sentences
        features = self._cache.embed_text(self._sentences, plan.prompts.all_sentences())
        bounds = np.cumsum([len(own) for _, own in lines])[:-1]
        return score(
            embedded.features,
            np.split(features, bounds),
            pooling=plan.protocol.pooling,
            scoring=plan.protocol.scoring,
            groups=selection.unit[embedded.row],
        )

    def _encoder(self, plan: CellPlan) -> ModelEncoder:
        return ModelEncoder(
            self._model,
            view=view_of(plan.protocol),
            preprocessing=plan.protocol.preprocessing,
            weights=self.weights,
        )
