"""Temperature scaling (Guo et al. 2017): fits the temperature that turns similarities into probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from his2lip.config import digest, sealed, unsealed
from his2lip.data.shards import ShardSet, labelled_rows, open_shards, resolve_split
from his2lip.errors import ConfigError, DatasetError
from his2lip.evaluation import (
    Answers,
    EmbeddingCache,
    ModelEncoder,
    calibration_figures,
    clusters_of,
    fit_temperature,
)
from his2lip.files import filesystem, write_file
from his2lip.models import read_meta
from his2lip.serving.classifier import Classifier
from his2lip.serving.questions import Question

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

FORMAT = 1
CALIBRATIONS = "calibrations"  # folder of calibration files inside a checkpoint
_REFIT = "fit it again with his2lip calibrate"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature, what it was fitted to, and its effect there; only valid for its model and question.

    model        `similarity_digest` of the model
    prompts      digest of the prompts
    question     title of the question
    data_digest  digest of the dataset; dataset: its name, marked where it is generated; split: its split
    n            the number of patches
    nll, ece     negative log likelihood (nats) and debiased calibration error (fraction) on these patches,
                 before (with the model's own scale) and after (with the temperature); the error is None
                 where it cannot be measured, as on patches of one case
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
    ece_before: float | None
    ece_after: float | None
    dataset: str = "a dataset whose name was not recorded"
    format: int = FORMAT

    @property
    def asked(self) -> tuple[str, str]:
        """What was asked: the prompts, which ER, PR and Ki67 share, and the question with its biomarker."""
        return self.prompts, self.question

    def __str__(self) -> str:
        return f"{self.dataset}, split {self.split}, {self.n:,} patches"

    def save(self, path: Path) -> None:
        """Writes the calibration to a JSON file, completely or not at all."""
        data = (json.dumps(sealed(asdict(self)), indent=1) + "\n").encode()
        write_file(*filesystem(path), data, what="the calibration")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads a file of `save`. Raises ConfigError for any other file, and for one that was changed."""
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**{key: value for key, value in tree.items() if key != "sha256"})
            usable = found.format == FORMAT and math.isfinite(found.temperature) and found.temperature > 0
        except FileNotFoundError:
            what, fix = "there is no such calibration", "check the path"
            raise ConfigError(what, where=path, key=path.name, fix=fix) from None
        except (OSError, ValueError, TypeError, AttributeError):
            raise ConfigError("this is not a calibration", where=path, key=path.name, fix=_REFIT) from None
        try:
            unsealed(tree)
        except ValueError as error:
            what = f"this calibration is damaged: {error}"
            raise ConfigError(what, where=path, key="sha256", fix=_REFIT) from None
        if not usable:
            raise ConfigError("this calibration cannot be used", where=path, key="temperature", fix=_REFIT)
        return found


def calibrate(
    model: DualEncoder, shards: str, question: Question, *, label: str, cache: str, split: str | None = None
) -> Calibration:
    """Fits one temperature to `question` on the patches whose column `label` has one of its classes.

    shards  folder or URI of a prepared dataset
    cache   folder or URI of cached embeddings
    split   a split with the role `select`; default: the dataset's only one
    Raises DatasetError for a split with another role or of one class, and where no temperature can be fitted.
    """
    opened = open_shards(shards)
    split = resolve_split(opened, split or "select", roles=("select",), key="--split")
    rows, labels = _labelled(opened, split, question, label)
    embedded = EmbeddingCache(cache).embed(ModelEncoder(model), opened, split, rows=rows)
    scores = Classifier(model, [question]).score(embedded.features)[question.name].scores
    own_scale = 1 / float(model.logit_scale.detach().exp())
    temperature = fit_temperature(scores, labels, where=f"{shards}, split {split}")
    columns = ["case_id", "slide_id", "patch_id"]
    table = opened.table(split, columns).take(pa.array(rows))
    cases, slides, patches = (table[column].to_pylist() for column in columns)
    clusters = clusters_of(cases, slides, [patch.partition("#")[0] for patch in patches]).numbers

    def figures(scale: float) -> tuple[float, float | None]:
        """Negative log likelihood and calibration error."""
        found = calibration_figures(Answers(scores.astype(np.float64) / scale, labels, clusters))
        nll = found["nll"].value
        assert nll is not None, "there are patches, and their logits are finite"
        return nll, found["ece"].value

    before, after = figures(own_scale), figures(temperature)
    return Calibration(
        temperature=temperature,
        model=similarity_digest(model),
        prompts=question.prompts.digest,
        question=question.title,
        data_digest=opened.digest,
        dataset=opened.info.title,
        split=split,
        n=len(labels),
        nll_before=before[0],
        nll_after=after[0],
        ece_before=before[1],
        ece_after=after[1],
    )


def calibrated(
    questions: Sequence[Question],
    model: DualEncoder,
    files: Iterable[Path],
    *,
    carried: Iterable[Calibration] = (),
) -> list[Question]:
    """The questions, each with the temperature of the calibration file that was fitted to it.

    carried  calibrations that are stored with the model; they serve the questions that no file serves
    Raises ConfigError for a file that was fitted to another model, or to none of the questions.
    """
    out = list(questions)
    digest_of_model = similarity_digest(model)
    for found in carried:
        if found.model == digest_of_model:
            out = [_with(question, found) for question in out]
    for file in files:
        found = Calibration.load(file)
        if found.model != digest_of_model:
            what = "this calibration was fitted to another model"
            raise ConfigError(what, where=file, key="model", fix=_REFIT)
        if found.asked not in map(_asked, out):
            what = f"this calibration was fitted to another question ({found.question}) or to other prompts"
            raise ConfigError(what, where=file, key="prompts", fix=_REFIT)
        out = [_with(question, found) for question in out]
    return out


def _with(question: Question, found: Calibration) -> Question:
    """The question with the temperature, where it was fitted to it."""
    if _asked(question) != found.asked:
        return question
    return replace(question, temperature=found.temperature, calibrated=str(found))


def _asked(question: Question) -> tuple[str, str]:
    """As `Calibration.asked`."""
    return question.prompts.digest, question.title


def store_calibrations(folder: Path, files: Iterable[Path]) -> list[Calibration]:
    """Copies calibration files into the checkpoint in `folder`; returns all that are then stored with it.

    Of two calibrations of the same question, the one in `files` is kept. Raises ConfigError for a file that
    was fitted to another model.
    """
    place, meta = folder / CALIBRATIONS, read_meta(folder)
    for file in files:
        found = Calibration.load(file)
        if found.model != _recorded_digest(meta):
            raise ConfigError(
                "this calibration was fitted to another model", where=file, key="model", fix=_REFIT
            )
        for old in stored_calibrations(folder):
            if Calibration.load(old).asked == found.asked:
                old.unlink()
        found.save(place / f"{found.prompts[:16]}-{digest(found.question)[:8]}.json")
    return [Calibration.load(file) for file in stored_calibrations(folder)]


def stored_calibrations(folder: Path) -> list[Path]:
    """The files of the calibrations that are stored with the checkpoint in `folder`."""
    return sorted((folder / CALIBRATIONS).glob("*.json"))


def similarity_digest(model: DualEncoder) -> str:
    """sha256 of all that the similarities of a model depend on, except images and sentences."""
    return digest(
        {
            "tensors": model.tensor_digest(),
            "config": model.config_digest(),
            "preprocess": model.preprocess.digest,
            "similarity": model.similarity,
        }
    )


def _recorded_digest(meta: Mapping[str, Any]) -> str:
    """`similarity_digest` of a checkpoint, from its his2lip.json."""
    return digest(
        {
            "tensors": meta["tensor_digest"],
            "config": meta["config_digest"],
            "preprocess": meta["preprocess_digest"],
            "similarity": meta["similarity"],
        }
    )


def _labelled(shards: ShardSet, split: str, question: Question, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and class numbers, int64 (N,) each, of the patches that the question can be fitted on.

    They have a class of the question in the column `label`, and the biomarker of the question, if it has one.
    """
    classes, biomarker = question.prompts.classes, question.biomarker
    rows, labels = labelled_rows(
        shards.table(split, list(dict.fromkeys([label, "biomarker"]))),
        label,
        {name: number for number, name in enumerate(classes)},
        where={"biomarker": [biomarker]} if biomarker else {},
    )
    if not len(rows):
        of = f" of {biomarker}" if biomarker else ""
        what = f"no patch{of} in '{split}' has one of {', '.join(classes)} in its column '{label}'"
        raise DatasetError(what, where=shards.uri, key="--label", fix="name another column with --label")
    if len(found := set(labels.tolist())) == 1:  # the best temperature would be that of this class alone
        what = f"all {len(rows):,} patches of '{split}' are {classes[found.pop()]}: one class fits nothing"
        fix = "name a split of several classes with --split, or another column with --label"
        raise DatasetError(what, where=shards.uri, key="--label", fix=fix)
    return rows, labels
