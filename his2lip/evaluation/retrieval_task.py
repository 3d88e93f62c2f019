"""Retrieval as a task of the grid: images and held-out captions search each other in four directions."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from his2lip import taxonomy
from his2lip.config import digest
from his2lip.data.captions import CaptionBank, plain
from his2lip.data.cards import Card, Protocol
from his2lip.data.shards import ShardSet
from his2lip.errors import ConfigError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_cell import Plan, Scorer, described
from his2lip.evaluation.protocols import drawn, select
from his2lip.evaluation.retrieval import NEVER, NO_CLASS, Items, Ranks, chance, rank
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.statistics import ClusterKind, Clusters, even_clusters, interval
from his2lip.evaluation.task_results import Estimate, TaskRow, Unit
from his2lip.evaluation.tasks import TaskPlan, TaskScored, protocol_of, rows_under
from his2lip.evaluation.zero_shot import unit_rows

DIRECTIONS = ("image-to-text", "text-to-image", "image-to-image", "text-to-text")
RELEVANCES = ("tissue", "tissue and biomarker")
OTHER_BANK = "it was trained on captions of another bank, in which the searched ones may occur"
_PAIR: ClusterKind = "pair"  # kind of the clusters of captions: all of one tissue type and biomarker

Labels = tuple[str | None, str | None]  # tissue type, biomarker


@dataclass(frozen=True)
class Caption:
    """A held-out caption, and what it is about."""

    text: str
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class RetrievalPlan(TaskPlan):
    """The images of `selection` and the captions that search each other."""

    task: ClassVar[str] = "retrieval"
    version: ClassVar[int] = 2
    baselines: ClassVar[frozenset[str]] = frozenset({"chance"})
    captions: Sequence[Caption]
    banks: frozenset[str]  # digests that training from the same bank records

    def settings(self) -> dict[str, Any]:
        captions = [[c.text, *c.labels] for c in self.captions]
        return {"captions": digest(captions), "banks": sorted(self.banks)}

    def score(self, scorer: Scorer) -> TaskScored:
        """Figures of all directions and relevances. A scorer that is no model ranks at random (chance)."""
        images, texts, device = self._features(scorer)
        rows, evidence = [], []
        for direction in DIRECTIONS:
            asked, searched = direction.split("-to-")
            left_out = "image" if "image" in direction else "text"  # whose clusters an interval leaves out
            clusters = self.selection.clusters if left_out == "image" else self._pairs
            for relevance in RELEVANCES:
                queries, gallery = (
                    self._items(
                        kind,
                        relevance,
                        images if kind == "image" else texts,
                        clusters.numbers if kind == left_out else None,
                    )
                    for kind in (asked, searched)
                )
                ranks, without = rank(queries, gallery, device=device, groups=clusters.count)
                if not ranks.scored.any():
                    continue
                setting = {"direction": direction, "relevance": relevance}
                rows.append(_row(setting, ranks, without, clusters, gallery, random=not _is_model(scorer)))
                evidence.append(_evidence(setting, self._names(asked), ranks))
        if not rows:
            what = "no image has the tissue type of another image or of a held-out caption"
            raise ConfigError(what, where=self.uri, key="retrieval.captions", fix="give another caption bank")
        return TaskScored(rows, pa.concat_tables(evidence), self._caveat(scorer))

    def _caveat(self, scorer: Scorer) -> str | None:
        known = scorer.captions if isinstance(scorer, ModelScorer) else None
        return None if known is None or known in self.banks else OTHER_BANK

    def _features(self, scorer: Scorer) -> tuple[np.ndarray, np.ndarray, str]:
        """Features of images (N, D) and captions (C, D) to compare, and the device to compare them on."""
        if not isinstance(scorer, ModelScorer):  # only the sizes are used
            return np.zeros((len(self._image_labels), 1)), np.zeros((len(self.captions), 1)), "cpu"
        crops, unit = scorer.images(self)
        compared = self._compared(crops)
        sums = np.zeros((len(self.selection.unit_ids), crops.shape[1]))
        np.add.at(sums, unit, compared)
        images = self._compared(sums / np.bincount(unit, minlength=len(sums))[:, None])
        return images, self._compared(scorer.texts([c.text for c in self.captions])), scorer.device

    def _compared(self, features: np.ndarray) -> np.ndarray:
        """float64 (N, D) whose scalar products are the similarities of the protocol's scoring."""
        features = features.astype(np.float64)
        return features if self.protocol.scoring == "dot" else unit_rows(features)

    def _items(self, kind: str, relevance: str, features: np.ndarray, clusters: np.ndarray | None) -> Items:
        labels = self._image_labels if kind == "image" else [c.labels for c in self.captions]
        # Captions have negative numbers, so that none is taken for an image.
        selves = self._pictures if kind == "image" else -1 - _numbers([plain(c.text) for c in self.captions])
        kept = np.full(len(labels), NEVER) if clusters is None else clusters
        order = self._order if kind == "image" else slice(None)
        return Items(features[order], _classes(labels, relevance)[order], selves[order], kept[order])

    @functools.cached_property
    def _order(self) -> list[int]:
        """The order of the images, which decides between equal similarities, as that of the captions does.

        Rows of a split are often sorted by class: a model that embeds all images alike would be ranked by it.
        """
        return drawn(self.selection.unit_ids, len(self.selection.unit_ids), 0)

    @functools.cached_property
    def _image_labels(self) -> list[Labels]:
        tissues = [self.selection.classes[c] for c in self.selection.labels.tolist()]
        return list(zip(tissues, self.selection.breakdown["biomarker"], strict=True))

    @functools.cached_property
    def _pictures(self) -> np.ndarray:
        """int64 (N,): equal for units with the same images, byte by byte."""
        sums = np.zeros(len(self.selection.labels), dtype=np.uint64)
        np.add.at(sums, self.selection.unit, self.selection.image_keys)
        return _numbers(sums.tolist())

    @functools.cached_property
    def _pairs(self) -> Clusters:
        """Clusters of the captions. A seed family is of one pair, so that no family is in two clusters."""
        return Clusters([f"{t}/{b}" for t, b in (c.labels for c in self.captions)], _PAIR)

    def _names(self, kind: str) -> list[str]:
        if kind == "text":
            return [c.text for c in self.captions]
        return [self.selection.unit_ids[place] for place in self._order]


def plan_retrieval(dataset: str, name: str, card: Card, shards: ShardSet, config: BenchmarkConfig) -> Plan:
    """The plan of retrieval on a dataset. Raises ConfigError where it lacks the protocol, or captions."""
    section = config.retrieval
    assert section is not None, "the grid plans the tasks that the benchmark has"
    bank = _bank(section.captions)
    captions = held_out(bank, section.captions)
    places = drawn([f"{c.labels} {c.text}" for c in captions], section.most_captions, section.seed)
    protocol = _of_tissues(protocol_of("retrieval", section.protocol, dataset, card, shards, config.role))
    return RetrievalPlan(
        **described(dataset, name, protocol, card, shards),
        selection=select(shards, protocol, card=card, most=section.most_images, seed=section.seed),
        captions=[captions[i] for i in places],
        banks=frozenset(
            replace(bank, missing=rule, staining=follow).digest
            for rule in ("drop", "template")
            for follow in ("follow", "ignore")
        ),
    )


def _bank(place: str) -> CaptionBank:
    return CaptionBank.from_folder(place)[0] if Path(place).is_dir() else CaptionBank.load(place)


def held_out(bank: CaptionBank, place: str) -> list[Caption]:
    """The held-out captions of a bank that was read from `place`. Raises ConfigError for one without any."""
    found = [Caption(text, pair) for pair, lines in bank.held_out.items() for text in dict.fromkeys(lines)]
    if not found:
        what = "this caption bank holds no captions out"
        fix = "write it again with his2lip data prepare captions, which holds whole seed families out"
        raise ConfigError(what, where=place, key="retrieval.captions", fix=fix)
    return found


def _of_tissues(protocol: Protocol) -> Protocol:
    """The protocol with the tissue types as its classes; its split, view, units and scoring stay."""
    changes = {
        "label": "tissue",
        "classes": {name: [name] for name in taxonomy.TISSUES},
        "apart": {},
        "where": {},
        "prompts": "tissue",
        "breakdown": "biomarker",
        "tile_pool": "mean",
        "event": None,
    }
    return protocol.model_copy(update=changes)


def _classes(labels: Sequence[Labels], relevance: str) -> np.ndarray:
    """int64 (N,): equal for labels that are relevant to each other; NO_CLASS where one is unknown."""
    tissue, pair = RELEVANCES
    known = {name: i for i, name in enumerate(taxonomy.TISSUES)}
    both = {name: i for i, name in enumerate(taxonomy.BIOMARKERS)}
    numbers = []
    for t, b in labels:
        if t is None or (relevance == pair and b is None):
            numbers.append(NO_CLASS)
        else:
            numbers.append(known[t] if relevance == tissue else known[t] * len(both) + both[str(b)])
    return np.array(numbers, dtype=np.int64)


def _row(
    setting: Mapping[str, str],
    ranks: Ranks,
    without: Ranks,
    clusters: Clusters,
    gallery: Items,
    *,
    random: bool,
) -> TaskRow:
    expected = chance(ranks)
    values = {name: float(value) for name, value in ranks.figures().items()}
    reason = clusters.refusal(np.zeros(len(clusters.ids), dtype=np.int64), ["the task"])
    replicates = {} if random or reason is not None else without.figures()
    effective = even_clusters(np.bincount(clusters.numbers))
    figures = {}
    for name, value in values.items():
        unit: Unit = "rank" if name == "median_rank" else "fraction"
        found = None
        if name in replicates and unit == "fraction":  # the jackknife is not valid for a median
            found = interval(value, replicates[name], effective=effective)
        low, high = found or (None, None)
        shown = expected[name] if random else value
        figures[name] = Estimate(value=shown, lo=low, hi=high, unit=unit)
        figures[f"{name}_chance"] = Estimate(value=expected[name], unit=unit)
    return TaskRow(
        setting=dict(setting),
        sizes={"queries": int(ranks.scored.sum()), "gallery": len(gallery)},
        clusters=clusters.count,
        cluster_kind=clusters.kind,
        no_interval="chance is an expectation" if random else reason,
        figures=figures,
    )


def retrieval_of(rows: Sequence[TaskRow], evidence: pa.Table, *, random: bool) -> list[TaskRow]:
    """The rows with their figures computed again from the stored ranks of the queries.

    Intervals stay: they follow from ranks without each cluster, which are not stored.

    random  whether the rows are those of a random order (chance)
    """
    again = []
    for row in rows:
        own = rows_under(evidence, row.setting)
        columns = ("first_rank", "average_precision", "relevant", "gallery")
        ranks = Ranks(*(own[name].to_numpy() for name in columns))
        expected = chance(ranks)
        own_values = {name: float(value) for name, value in ranks.figures().items()}
        values = {f"{name}_chance": value for name, value in expected.items()}
        values |= expected if random else own_values
        figures = {name: row.figures[name].model_copy(update={"value": values[name]}) for name in row.figures}
        sizes = row.sizes | {"queries": len(own)}
        again.append(row.model_copy(update={"figures": figures, "sizes": sizes}))
    return again


def _evidence(setting: Mapping[str, str], names: Sequence[str], ranks: Ranks) -> pa.Table:
    """One row per scored query."""
    scored = ranks.scored
    kept = [name for name, keep in zip(names, scored.tolist(), strict=True) if keep]
    return pa.table(
        {
            **{key: pa.array([value] * len(kept), pa.string()) for key, value in setting.items()},
            "query": pa.array(kept, pa.string()),
            "first_rank": ranks.first[scored],
            "average_precision": ranks.precision[scored],
            "relevant": ranks.relevant[scored],
            "gallery": ranks.gallery[scored],
        }
    )


def _is_model(scorer: Scorer) -> bool:
    return isinstance(scorer, ModelScorer)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """int64 (N,): equal values have equal numbers."""
    return np.unique(np.array(values), return_inverse=True)[1].reshape(-1).astype(np.int64)
