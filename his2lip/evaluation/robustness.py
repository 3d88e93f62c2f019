"""Robustness as a task of the grid: macro F1 on perturbed images, and the most confident errors without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from his2lip.data.cards import PROTOCOL_REMARKS, Card
from his2lip.data.images import decode, encode_jpeg
from his2lip.data.shards import ShardSet, open_shards
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.embeddings import read_images
from his2lip.evaluation.grid_cell import Plan, Scorer, described
from his2lip.evaluation.metrics import METRICS, Predictions
from his2lip.evaluation.perturbations import Perturbation
from his2lip.evaluation.prompts import PromptSet, of_protocol
from his2lip.evaluation.protocols import select
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.statistics import Clusters, interval
from his2lip.evaluation.task_results import Estimate, TaskRow
from his2lip.evaluation.tasks import TaskPlan, TaskScored, protocol_of, rows_under
from his2lip.evaluation.zero_shot import Scores

NONE = "none"  # the setting without a perturbation
_CLASSES = b"classes"  # key of the metadata of the evidence
_THUMBNAIL = 128  # px, longer side
AT_CHANCE = "without perturbation it cannot be told from chance, so that its drops say little"


@dataclass(frozen=True, kw_only=True)
class RobustnessPlan(TaskPlan):
    """A protocol on a part of its units, under each of some perturbations."""

    task: ClassVar[str] = "robustness"
    version: ClassVar[int] = 2
    prompts: PromptSet
    perturbations: Sequence[Perturbation]
    errors: int  # most confident errors that are kept with a thumbnail

    def settings(self) -> dict[str, Any]:
        return {
            # `basis` decides no figure either; it stays, since the identity of stored grid cells has it.
            "protocol": self.protocol.model_dump(mode="json", exclude=PROTOCOL_REMARKS - {"basis"}),
            "prompts": self.prompts.digest,
            "perturbations": [one.key for one in self.perturbations],
            "errors": self.errors,
        }

    def further_encoders(self, scorer: Scorer) -> list[str]:
        assert isinstance(scorer, ModelScorer), "no baseline is taken"
        return [scorer.encoder_key(self, one) for one in self.perturbations]

    def score(self, scorer: Scorer) -> TaskScored:
        assert isinstance(scorer, ModelScorer), "no baseline is robust or not: none is taken"
        clean = scorer.classify(self, self.prompts)
        whole, clusters = self._predictions(clean), self.selection.clusters.where(self.selection.scored)
        reason = clusters.refusal(whole.labels, whole.classes)
        rows = [_row(NONE, "0", whole, whole, clusters, reason)]
        evidence = [self._evidence(NONE, "0", clean, self._thumbnails(clean))]
        for one in self.perturbations:
            level = f"{one.level:g}"
            found = scorer.classify(self, self.prompts, perturbation=one)
            rows.append(_row(one.kind, level, self._predictions(found), whole, clusters, reason))
            evidence.append(self._evidence(one.kind, level, found, {}))
        # All classes, since those without a unit count in macro F1.
        table = pa.concat_tables(evidence).replace_schema_metadata({_CLASSES: json.dumps(whole.classes)})
        return TaskScored(rows, table, _caveat(whole, clusters, reason))

    def _predictions(self, scores: Scores) -> Predictions:
        scored, selection = self.selection.scored, self.selection
        ordered, predicted = self.protocol.ordinal, scores.predicted[scored]
        return Predictions(selection.labels[scored], predicted, selection.classes, ordered, None)

    def _thumbnails(self, scores: Scores) -> dict[int, bytes]:
        """Unit -> a JPEG of its first image, of the errors with the largest margins."""
        wrong = np.flatnonzero(self.selection.scored & (scores.predicted != self.selection.labels))
        order = np.argsort(-_margins(scores, self.selection.labels)[wrong], kind="stable")
        first = np.unique(self.selection.unit, return_index=True)[1]
        rows = {int(self.selection.rows[first[u]]): int(u) for u in wrong[order][: self.errors]}
        images = read_images(open_shards(self.uri), self.protocol.split, sorted(rows))
        return {rows[row]: _thumbnail(image["image"]) for row, image in images}

    def _evidence(self, kind: str, level: str, scores: Scores, thumbnails: dict[int, bytes]) -> pa.Table:
        """One row per scored unit."""
        selection = self.selection
        units = np.flatnonzero(selection.scored).tolist()
        margins = _margins(scores, selection.labels)
        classes = selection.classes
        return pa.table(
            {
                "perturbation": pa.array([kind] * len(units), pa.string()),
                "level": pa.array([level] * len(units), pa.string()),
                "patch_id": pa.array([selection.unit_ids[u] for u in units], pa.string()),
                "cluster": pa.array([selection.clusters.ids[u] for u in units], pa.string()),
                "label": pa.array([classes[selection.labels[u]] for u in units], pa.string()),
                "predicted": pa.array([classes[scores.predicted[u]] for u in units], pa.string()),
                "margin": pa.array([float(margins[u]) for u in units], pa.float64()),
                "thumbnail": pa.array([thumbnails.get(u) for u in units], pa.binary()),
            }
        )


def plan_robustness(dataset: str, name: str, card: Card, shards: ShardSet, config: BenchmarkConfig) -> Plan:
    """The plan of robustness on a dataset. Raises ConfigError where it lacks the protocol."""
    section = config.robustness
    assert section is not None, "the grid plans the tasks that the benchmark has"
    protocol = protocol_of("robustness", section.protocol, dataset, card, shards, config.role)
    own = of_protocol(config.prompts, dataset, section.protocol) or protocol.prompts
    return RobustnessPlan(
        **described(dataset, name, protocol, card, shards),
        selection=select(shards, protocol, card=card, most=section.most_units, seed=section.seed),
        prompts=PromptSet.load(own).narrow(protocol.classes),
        perturbations=[
            Perturbation(kind, level, section.seed)
            for kind, levels in section.perturbations.items()
            for level in levels
        ],
        errors=section.errors,
    )


def _row(
    kind: str, level: str, found: Predictions, clean: Predictions, clusters: Clusters, reason: str | None
) -> TaskRow:
    """Macro F1 under a perturbation, and the drop from `clean`, paired by unit."""
    metric = METRICS["macro_f1"]
    value, before = metric.compute(found), metric.compute(clean)
    assert value is not None
    assert before is not None
    figures: dict[str, tuple[float, np.ndarray | None, tuple[float, float]]] = {}
    own = None if reason is not None else metric.replicates(found, clusters.numbers)
    base = None if reason is not None else metric.replicates(clean, clusters.numbers)
    figures["macro_f1"] = (value, own, (0.0, 1.0))
    if kind != NONE:
        figures["drop"] = (before - value, None if own is None or base is None else base - own, (-1.0, 1.0))
    if kind != NONE and before > 0:
        ratio = None
        if own is not None and base is not None:
            ratio = 1 - own / np.where(base > 0, base, np.nan)
        figures["relative_drop"] = (1 - value / before, ratio, (-np.inf, 1.0))
    estimates, effective = {}, metric.effective(found, clusters.numbers)
    for name, (figure, replicates, bounds) in figures.items():
        limits = (
            None if replicates is None else interval(figure, replicates, bounds=bounds, effective=effective)
        )
        low, high = limits or (None, None)
        estimates[name] = Estimate(value=figure, lo=low, hi=high)
    return TaskRow(
        setting={"perturbation": kind, "level": level},
        sizes={"units": len(found.labels)},
        clusters=clusters.count,
        cluster_kind=clusters.kind,
        no_interval=reason,
        figures=estimates,
    )


def robustness_of(rows: Sequence[TaskRow], evidence: pa.Table) -> list[TaskRow] | None:
    """The rows with their figures and intervals computed again from the stored predictions.

    None for evidence of an earlier version, which does not name all classes.
    """
    known = (evidence.schema.metadata or {}).get(_CLASSES)
    if known is None:
        return None
    classes = json.loads(known)
    number = {name: c for c, name in enumerate(classes)}

    def stored(row: TaskRow) -> tuple[Predictions, Clusters]:
        own = rows_under(evidence, row.setting)
        labels, predicted = (
            np.array([number[name] for name in own[column].to_pylist()], dtype=np.int64)
            for column in ("label", "predicted")
        )
        return Predictions(labels, predicted, classes), Clusters(own["cluster"].to_pylist(), "case")

    clean, clusters = stored(rows[0])
    again = []
    for row in rows:
        kind, level = row.setting["perturbation"], row.setting["level"]
        found = _row(kind, level, stored(row)[0], clean, clusters, row.no_interval)
        again.append(found.model_copy(update={"cluster_kind": row.cluster_kind}))
    return again


def _caveat(clean: Predictions, clusters: Clusters, reason: str | None) -> str | None:
    """Whether the model is at chance already without a perturbation."""
    metric = METRICS["chance_corrected"]
    value = metric.compute(clean)
    if value is None:
        return None
    limits = None
    if reason is None:
        replicates = metric.replicates(clean, clusters.numbers)
        effective = metric.effective(clean, clusters.numbers)
        limits = interval(value, replicates, bounds=metric.bounds, effective=effective)
    return AT_CHANCE if (value if limits is None else limits[0]) <= 0 else None


def _margins(scores: Scores, labels: np.ndarray) -> np.ndarray:
    """float64 (U,): the score of the predicted class minus that of the unit's own; NaN for units apart."""
    units = np.arange(len(labels))
    own = np.where(labels >= 0, scores.scores[units, np.maximum(labels, 0)], np.nan)
    margins: np.ndarray = scores.scores[units, scores.predicted].astype(np.float64) - own
    return margins


def _thumbnail(image: bytes) -> bytes:
    picture = Image.fromarray(decode(image))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return encode_jpeg(np.asarray(picture))
