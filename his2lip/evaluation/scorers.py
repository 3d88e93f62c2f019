"""A dual encoder as a scorer of the grid: zero-shot classification of cached features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from his2lip.data.shards import open_shards
from his2lip.errors import DatasetError
from his2lip.evaluation.config import OWN_POOL
from his2lip.evaluation.embeddings import Embedded, EmbeddingCache
from his2lip.evaluation.encoders import ModelEncoder, SentenceEncoder
from his2lip.evaluation.grid_cell import CellPlan, FitPlan, Plan, PoolScores, Scored
from his2lip.evaluation.known_model import KnownModel
from his2lip.evaluation.overlap import Overlap, overlap
from his2lip.evaluation.perturbations import Perturbation, PerturbedEncoder
from his2lip.evaluation.prompt_bands import macro_f1_of_draws, varies
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.protocols import Selection, top_of, view_of
from his2lip.evaluation.reliability import Fitted, fit_temperature
from his2lip.evaluation.sight import Sight, sight
from his2lip.evaluation.views import TrainingField
from his2lip.evaluation.zero_shot import Scores, mean_by_group, score, unit_rows

if TYPE_CHECKING:
    from his2lip.models import DualEncoder, TrainingRecord


class ModelScorer:
    """Zero-shot classification by one model. The cache embeds each image and sentence once."""

    uses_prompts = True

    def __init__(
        self,
        name: str,
        model: DualEncoder | KnownModel,
        cache: EmbeddingCache,
        *,
        record: TrainingRecord | None = None,
        declared: Collection[str] | None = None,
        field: TrainingField | None = None,
        captions: str | None = None,
        batch_size: int = 64,
        threads: int = 2,
    ) -> None:
        """
        record    what the model was trained on; with it, the model also counts as trained on every dataset
                  whose card has `in_domain: true`
        declared  names in the benchmark of the datasets that it was trained on; None: as its record says
        captions  digest of the caption bank that it was trained from; None: of none that is known
        field     what the model saw per input side in training; None: unknown
        """
        self.name = name
        self.weights = model.facts.tensors if isinstance(model, KnownModel) else model.tensor_digest()
        self._model, self._cache = model, cache
        self.captions = captions
        self._record, self._declared, self._field = record, declared, field
        self._batch_size, self._threads = batch_size, threads
        self._sentences = SentenceEncoder(model, weights=self.weights)

    def identity(self, plan: Plan) -> str:
        return self.encoder(plan).key

    def trained_on(self, plan: Plan) -> bool:
        if self._declared is not None:
            return plan.dataset in self._declared
        known = self._record
        if known is None:
            return False
        return plan.in_domain or plan.origin in known.datasets or plan.data_digest in known.digests

    def overlap(self, plan: Plan) -> Overlap | None:
        return overlap(self._record, plan.selection)

    def cut_prompts(self, plan: CellPlan) -> int:
        return self._cache.cut(self._sentences, plan.prompts.all_sentences())

    def score(self, plan: CellPlan) -> Scored:
        """Scores under the protocol's own pool of prompts, and what each pool gives."""
        features, unit = self.images(plan)
        pools = {
            name: self._under(prompts, plan, features, unit)
            for name, prompts in {OWN_POOL: plan.prompts, **plan.pools}.items()
        }
        fitted = self._fitted(plan) if isinstance(plan.fit, FitPlan) else plan.fit
        return Scored(pools[OWN_POOL].scores, pools, device=self.device.partition(":")[0], fitted=fitted)

    def _fitted(self, plan: CellPlan) -> Fitted | str:
        """The temperature that fits the units of the plan's `select` split best, or why there is none."""
        assert isinstance(plan.fit, FitPlan)
        fit = plan.fit
        embedded = self._embedded(plan, fit.split, fit.selection)
        unit = fit.selection.unit[embedded.row]
        scores = self._scores(plan.prompts, plan, embedded.features, unit).scores[fit.used]
        try:
            found = fit_temperature(scores, fit.selection.labels[fit.used], where=fit.split)
        except DatasetError as error:
            return error.what
        return Fitted(found, fit.split, int(fit.used.sum()))

    def encoder_key(self, plan: Plan, perturbation: Perturbation) -> str:
        """The key of the plan's features under a perturbation."""
        return self.encoder(plan, perturbation).key

    def classify(self, plan: Plan, prompts: PromptSet, *, perturbation: Perturbation | None = None) -> Scores:
        """Scores of the plan's units under one pool of prompts, with or without a perturbation of images."""
        features, unit = self.images(plan, perturbation=perturbation)
        return self._scores(prompts, plan, features, unit)

    def images(
        self, plan: Plan, *, perturbation: Perturbation | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raw features of the plan's crops, float32 (M, D), and the unit of each, int64 (M,)."""
        embedded = self._embedded(plan, plan.protocol.split, plan.selection, perturbation)
        return embedded.features, plan.selection.unit[embedded.row]

    def texts(self, sentences: Sequence[str]) -> np.ndarray:
        """Raw features of sentences, float32 (P, D)."""
        return self._cache.embed_text(self._sentences, sentences)

    @property
    def device(self) -> str:
        """Where the model is, in the words of torch."""
        return str(self._model.device)

    def features(self, plan: CellPlan, split: str, selection: Selection) -> np.ndarray:
        """float32 (U, D): of each unit of a split the mean of its crops' features, all of length 1."""
        embedded = self._embedded(plan, split, selection)
        means = mean_by_group(unit_rows(embedded.features), selection.unit[embedded.row])
        return unit_rows(means).astype(np.float32)

    def _embedded(
        self, plan: Plan, split: str, selection: Selection, perturbation: Perturbation | None = None
    ) -> Embedded:
        return self._cache.embed(
            self.encoder(plan, perturbation),
            open_shards(plan.uri),
            split,
            rows=selection.rows,
            batch_size=self._batch_size,
            threads=self._threads,
        )

    def _under(self, prompts: PromptSet, plan: CellPlan, images: np.ndarray, unit: np.ndarray) -> PoolScores:
        """Scores of image features (N, D), of the units int64 (N,), under one pool of prompts."""
        sizes, texts = self._texts_of(prompts)
        pooling, scoring, top = plan.protocol.pooling, plan.protocol.scoring, top_of(plan.protocol)
        whole = self._scores(prompts, plan, images, unit)
        if not varies(sizes):
            return PoolScores(whole, [])
        of_draws = macro_f1_of_draws(
            images,
            texts,
            plan.selection.labels,
            pooling=pooling,
            scoring=scoring,
            groups=unit,
            top=top,
        )
        return PoolScores(whole, of_draws.tolist())

    def _scores(self, prompts: PromptSet, plan: Plan, images: np.ndarray, unit: np.ndarray) -> Scores:
        """Scores under the whole pool."""
        _, texts = self._texts_of(prompts)
        pooling, scoring, top = plan.protocol.pooling, plan.protocol.scoring, top_of(plan.protocol)
        return score(images, texts, pooling=pooling, scoring=scoring, groups=unit, top=top)

    def _texts_of(self, prompts: PromptSet) -> tuple[list[int], list[np.ndarray]]:
        """The number of sentences of each class, and their raw features (P_c, D)."""
        sizes = [len(own) for _, own in prompts.sentences]
        return sizes, np.split(self.texts(prompts.all_sentences()), np.cumsum(sizes)[:-1])

    def sight(self, plan: CellPlan) -> Sight:
        view = self.encoder(plan).view
        shards, selection = open_shards(plan.uri), plan.selection
        return sight(view, self._field, shards, plan.protocol, selection, self._cache, threads=self._threads)

    def encoder(self, plan: Plan, perturbation: Perturbation | None = None) -> ModelEncoder:
        """What embeds the plan's images, under a perturbation or without one."""
        view, preprocessing = view_of(plan.protocol, self._field), plan.protocol.preprocessing
        if perturbation is None:
            return ModelEncoder(self._model, view=view, preprocessing=preprocessing, weights=self.weights)
        return PerturbedEncoder(
            self._model, perturbation, view=view, preprocessing=preprocessing, weights=self.weights
        )
