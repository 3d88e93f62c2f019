"""Temperature scaling: similarities as probabilities, fitted on a `select` split (Guo et al. 2017)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from his2lip.config import digest
from his2lip.data.shards import ShardSet, labelled_rows, open_shards, resolve_split
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation import EmbeddingCache, ModelEncoder
from his2lip.serving.classifier import Classifier, Question, softmax

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

FORMAT = 1
_BINS = 15  # of confidence, in the expected calibration error (Guo et al. 2017, section 2)
_HALVINGS = 60  # of the bracket around 1 / temperature: to float64's precision
_AGAIN = "fit it again with his2lip calibrate"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature, what it was fitted for and on, and what it did there.

    model, prompts  digests of all that decides a similarity; another of either makes this one stale
    nll, ece        negative log likelihood (nats) and expected calibration error (fraction) on the split, at
                    the model's own scale and at the temperature, which was fitted on these very patches
    """

    temperature: float
    model: str
    prompts: str
    question: str
    data_digest: str
    split: str
    n: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    format: int = FORMAT

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises ConfigError for a file that is none."""
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ConfigError("this is not a calibration", where=path, fix=_AGAIN) from None
        if found.format != FORMAT or not found.temperature > 0:
            raise ConfigError("this calibration cannot be used", where=path, fix=_AGAIN)
        return found


def calibrate(
    model: DualEncoder, shards: str, question: Question, *, label: str, cache: str, split: str | None = None
) -> Calibration:
    """Fits one temperature to `question` on the patches whose column `label` holds one of its classes.

    Without `split`, the one whose role is `select`. Raises DatasetError for a split of another role, and
    where no temperature can be fitted.
    """
    opened = open_shards(shards)
    split = resolve_split(opened, split or "select", roles=("select",), key="--split")
    rows, labels = _labelled(opened, split, question, label)
    embedded = EmbeddingCache(cache).embed(ModelEncoder(model), opened, split, rows=rows)
    scores = Classifier(model, [question]).score(embedded.features)[question.name].scores
    own_scale = 1 / float(model.logit_scale.detach().exp())
    temperature = fit_temperature(scores, labels, where=f"{shards}, split {split}")
    before, after = softmax(scores / own_scale), softmax(scores / temperature)
    return Calibration(
        temperature=temperature,
        model=similarity_digest(model),
        prompts=question.prompts.digest,
        question=question.title,
        data_digest=opened.digest,
        split=split,
        n=len(labels),
        nll_before=nll(before, labels),
        nll_after=nll(after, labels),
        ece_before=calibration_error(before, labels),
        ece_after=calibration_error(after, labels),
    )


def calibrated(questions: Sequence[Question], model: DualEncoder, files: Iterable[Path]) -> list[Question]:
    """The questions, those that a file of `files` was fitted for with its temperature.

    Raises ConfigError for a file that was fitted for another model, or for none of these prompts.
    """
    out = list(questions)
    for file in files:
        found = Calibration.load(file)
        if found.model != similarity_digest(model):
            raise ConfigError("this calibration was fitted for another model", where=file, fix=_AGAIN)
        places = [i for i, q in enumerate(out) if q.prompts.digest == found.prompts]
        if not places:
            said = f"this calibration was fitted for other prompts (of the {found.question}) than those asked"
            raise ConfigError(said, where=file, fix=_AGAIN)
        out[places[0]] = replace(out[places[0]], temperature=found.temperature)
    return out


def fit_temperature(scores: np.ndarray, labels: np.ndarray, *, where: str) -> float:
    """The temperature T at which softmax(scores / T) has the least negative log likelihood.

    scores float (N, C), labels int64 (N,). The loss is convex in 1 / T, whose slope, the mean of
    (expected score - score of the truth), is therefore halved in to zero. Raises DatasetError where the least
    is at no finite temperature: scores that say nothing of the truth, or that are never wrong.
    """
    values = scores.astype(np.float64)
    truth = values[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(values * inverse) * values).sum(axis=1) - truth).mean())

    if slope(0) >= 0:
        raise DatasetError(
            "the similarities say nothing of the labels: no temperature mends that", where=where
        )
    if (truth == values.max(axis=1)).all():
        said = "every patch is classified right, so that no finite temperature is the best"
        raise DatasetError(said, where=where, fix="take a larger select split")
    low, high = 0.0, 1 / float(values.std())
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def nll(chances: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log likelihood, nats, of the truth under probabilities (N, C)."""
    truth = chances[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(truth, np.finfo(np.float64).tiny)).mean())


def calibration_error(chances: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence| by bins of confidence (Guo et al. 2017, eq. 3)."""
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.abs(np.bincount(bins, right - confidence, minlength=_BINS))
    return float(gaps.sum() / len(labels))


def similarity_digest(model: DualEncoder) -> str:
    """sha256 of what of a model decides a similarity: weights, architecture, preprocessing, comparison."""
    return digest(
        {
            "tensors": model.tensor_digest(),
            "config": model.config_digest(),
            "preprocess": model.preprocess.digest,
            "similarity": model.similarity,
        }
    )


def _labelled(shards: ShardSet, split: str, question: Question, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers whose label is a class of the question, and whose biomarker is the one that it names."""
    classes, asked = question.prompts.classes, question.biomarker
    rows, labels = labelled_rows(
        shards.table(split, list(dict.fromkeys([label, "biomarker"]))),
        label,
        {name: number for number, name in enumerate(classes)},
        where={"biomarker": [asked]} if asked else {},
    )
    if not len(rows):
        of = f" of {asked}" if asked else ""
        said = f"no patch{of} in '{split}' has one of {', '.join(classes)} in its column '{label}'"
        raise DatasetError(said, where=shards.uri, key="--label", fix="name another column with --label")
    return rows, labels
