"""What a grid will take, before it begins: the images that are not cached, its time and its disk."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from his2lip.config import digest, sealed, unsealed
from his2lip.data.shards import open_shards
from his2lip.errors import His2lipError, first_line
from his2lip.evaluation.baselines import reads
from his2lip.evaluation.cell_files import finished_cells
from his2lip.evaluation.config import PREFIX, BenchmarkConfig, ModelEntry
from his2lip.evaluation.embeddings import EmbeddingCache, feature_keys
from his2lip.evaluation.encoders import Crops, crop_key
from his2lip.evaluation.feature_store import FeatureStore
from his2lip.evaluation.grid_cell import CellPlan, FitPlan, Plan, Scorer
from his2lip.evaluation.grid_scorers import entry_meta, facts_key_of, plan_of, plans_of, scorer_of
from his2lip.evaluation.grid_task import Outcome, Work
from his2lip.evaluation.known_model import read_facts
from his2lip.evaluation.once import Once
from his2lip.evaluation.protocols import select, view_of
from his2lip.evaluation.results import CellFailure
from his2lip.evaluation.robustness import RobustnessPlan
from his2lip.evaluation.scorers import ModelScorer
from his2lip.evaluation.views import View
from his2lip.files import filesystem, free_bytes, write_file

_log = logging.getLogger(__name__)

BASELINES = "baselines"  # kind of the job that has the baselines
# What an estimate may fail by: files that are away or damaged. Anything else is a fault of the code.
UNREADABLE = (His2lipError, OSError, pa.ArrowException)
_FOLDER = "rates"  # of a cache
_LEAST = 100  # images from which a rate replaces one that is known


@dataclass(frozen=True)
class GridEstimate:
    """What a grid will take.

    cells, finished   its grid cells, and those of them that are stored
    unread            those whose images cannot be read: what they take is not known and in no other field
    images, missing   images of the other grid cells, once for each model and view; those that are not cached
    seconds, bytes    its time, and by how much the cache will grow, by the rates of earlier benchmarks with
                      the same cache; None where those of the models in `unknown` are needed
    free              bytes on the disk of the cache; None where it is in a bucket
    gpus              that its tasks ask for at once
    """

    cells: int
    finished: int
    images: int
    missing: int
    seconds: float | None
    bytes: int | None
    free: int | None
    gpus: int
    unknown: tuple[str, ...] = ()
    unread: int = 0


@dataclass(frozen=True)
class Job:
    """The grid cells of one task.

    kind   the models whose rates are alike: of one backbone, precision and device
    model  None for baselines, and for a model of which the cache does not know what names its features
    cells  each row and plan with what scores it; None where that is not known
    """

    name: str
    kind: str
    model: ModelScorer | None
    cells: list[tuple[ModelEntry, Plan, Scorer | None]]


def jobs_of(groups: Sequence[Sequence[ModelEntry]], work: Work) -> list[Job]:
    """What each task will do, without loading a model."""
    config, cache = work.config, EmbeddingCache(work.config.cache)
    jobs: list[Job] = []
    for group in filter(None, groups):
        first = group[0]
        loaded: dict[str, Once[ModelScorer]] = {}
        key = None if first.path.startswith(PREFIX) else facts_key_of(first, config, work.weights)
        known = key is not None and read_facts(cache.root, key) is not None
        cells: list[tuple[ModelEntry, Plan, Scorer | None]] = []
        for entry in group:
            scorer: Scorer | None = None
            if known or entry.path.startswith(PREFIX):
                with suppress(Exception):  # its task does the same, and reports it
                    scorer = scorer_of(entry, loaded, cache, config, work.weights)
            own = plans_of(entry, work.plans)
            cells += [(entry, plan_of(plan, scorer), scorer) for plan in own]
        model: ModelScorer | None = None
        for once in loaded.values():
            with suppress(Exception):  # its task reports it
                model = once()
        jobs.append(Job(first.name, kind_of(first, config), model, cells))
    return jobs


def kind_of(entry: ModelEntry, config: BenchmarkConfig) -> str:
    """What the rate of an entry's model is known by: its backbone, the precision and the device."""
    if entry.path.startswith(PREFIX):
        return BASELINES
    trained: Any = None
    with suppress(His2lipError, OSError):  # its task reports it
        trained = entry_meta(entry).get("config", {}).get("model")
    backbone = trained.get("backbone", entry.path) if isinstance(trained, dict) else entry.path
    return digest([backbone, config.precision, "gpu" if config.gpus else "cpu"])


@dataclass
class Rate:
    """What models of a kind took for a dataset: seconds of one CPU or GPU, the sum over those of a task."""

    images: int = 0
    image_seconds: float = 0.0
    bytes: int = 0
    cells: int = 0
    cell_seconds: float = 0.0

    def add(self, other: Rate) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Rates:
    """The rates in a cache, and those that are measured now, by kind and dataset."""

    cache: str
    _known: dict[str, dict[str, Rate]] = field(default_factory=dict)
    _new: dict[str, dict[str, Rate]] = field(default_factory=dict)

    def of(self, kind: str, dataset: str) -> Rate:
        """The rate on a dataset, or over all where that dataset is new; empty where nothing is known."""
        if kind not in self._known:
            self._known[kind] = _read(self.cache, kind)
        own = self._known[kind].get(dataset, Rate())
        everywhere = Rate()
        for rate in self._known[kind].values():
            everywhere.add(rate)
        of_images, of_cells = own if own.images else everywhere, own if own.cells else everywhere
        return Rate(
            of_images.images, of_images.image_seconds, of_images.bytes, of_cells.cells, of_cells.cell_seconds
        )

    def measured(self, kind: str, dataset: str, rate: Rate) -> None:
        self._new.setdefault(kind, {}).setdefault(dataset, Rate()).add(rate)

    def write(self) -> None:
        """Keeps what was measured. A cache that can only be read is left as it is."""
        system, base = filesystem(self.cache)
        for kind, new in self._new.items():
            rates = _read(self.cache, kind)
            for dataset, rate in new.items():
                old = rates.setdefault(dataset, rate)
                if rate.images >= min(_LEAST, max(old.images, 1)):
                    old.images, old.image_seconds, old.bytes = rate.images, rate.image_seconds, rate.bytes
                if rate.cells:
                    old.cells, old.cell_seconds = rate.cells, rate.cell_seconds
            tree = sealed({dataset: asdict(rate) for dataset, rate in rates.items()})
            with suppress(OSError):
                write_file(system, f"{base}/{_FOLDER}/{kind}.json", json.dumps(tree).encode())


def rate_of(outcome: Outcome, units_of_task: float) -> Rate:
    """What an outcome tells of the speed of its kind of model."""
    counts = outcome.counts
    rate = Rate(counts.images, counts.seconds * units_of_task, counts.bytes)
    if not outcome.reused and not isinstance(outcome.cell, CellFailure):
        rate.cells, rate.cell_seconds = 1, max(outcome.seconds - counts.seconds, 0.0) * units_of_task
    return rate


def units(config: BenchmarkConfig, groups: int) -> tuple[float, float]:
    """CPUs, or GPUs where the tasks ask for them: of all tasks at once with their helpers, and of one.

    config  with numbers in place of `auto`
    groups  tasks of models
    """
    import ray

    have = ray.cluster_resources().get("GPU" if config.gpus else "CPU", 0.0)
    each = float(config.gpus or config.cpus) or 1.0
    most = math.inf if config.helpers == "auto" else each * groups * (1 + config.helpers)
    together = max(min(have, most), each)
    return together, together / max(1, min(groups, int(together / each)))


def estimate_grid(
    jobs: Sequence[Job], config: BenchmarkConfig, rates: Rates, *, together: float
) -> GridEstimate:
    """What the jobs will take. Reads the keys of cached features, but no feature and no image.

    What cannot be read is left to the tasks, which report it, and is counted in `unread`.

    config    with numbers in place of `auto`
    together  CPUs or GPUs of all tasks at once, see `units`
    """
    done = finished_cells(config.folder)
    cells = finished = unread = images = missing = 0
    of_models = of_baselines = size = 0.0
    unknown: list[str] = []
    tables: Tables = {}
    for job in jobs:
        todo: list[str] = []  # the dataset of each grid cell
        wanted: list[_Wanted] = []
        seen: set[_Read] = set()
        for entry, plan, scorer in job.cells:
            cells += 1
            try:
                if scorer is not None and plan.identity(scorer) in done:
                    finished += 1
                    continue
                wanted += _wanted(job, entry, plan, tables, seen)
            except UNREADABLE as error:  # its task reports it, and it stops no other grid cell
                unread += 1
                _log.info("no estimate of %s on %s: %s", entry.name, plan.dataset, first_line(error))
            else:
                todo.append(plan.dataset)
        rate_of = {dataset: rates.of(job.kind, dataset) for dataset in todo}
        seconds = 0.0
        for dataset, count, lacking in _images(wanted, config.cache):
            images, missing = images + count, missing + lacking
            rate = rate_of[dataset]
            if lacking and rate.images:
                seconds += lacking * rate.image_seconds / rate.images
                size += lacking * rate.bytes / rate.images
            elif lacking and job.name not in unknown:
                unknown.append(job.name)
        for dataset in todo:
            if (rate := rate_of[dataset]).cells:
                seconds += rate.cell_seconds / rate.cells
        if job.kind == BASELINES:
            of_baselines += seconds
        else:
            of_models += seconds / together
    return GridEstimate(
        cells=cells,
        finished=finished,
        images=images,
        missing=missing,
        seconds=None if unknown else max(of_models, of_baselines),
        bytes=None if unknown else round(size),
        free=free_bytes(config.cache),
        gpus=math.ceil(together) if config.gpus else 0,
        unknown=tuple(unknown),
        unread=unread,
    )


# (uri, split) -> sha256 and mpp of its images; all models read the same.
Tables = dict[tuple[str, str], pa.Table]
_Wanted = tuple[str, Crops, set[str]]  # dataset, encoder, keys of its features
_Read = tuple[str, str, str, int]  # dataset, encoder, split, rows


@dataclass(frozen=True)
class _Unknown:
    """Stands for an encoder of a model that was not loaded: none of its features can be in the cache."""

    key: str
    view: View

    def crop_key(self, mpp: float | None) -> str:
        return crop_key(self.view, mpp)


def _wanted(job: Job, entry: ModelEntry, plan: Plan, tables: Tables, seen: set[_Read]) -> list[_Wanted]:
    """What a grid cell reads and none of its job before it.

    Adds to `tables`, and to `seen` where all of it can be read.
    """
    found: list[_Wanted] = []
    new: set[_Read] = set()
    for encoder, split, rows in _reads(job, entry, plan):
        read = (plan.dataset, encoder.key, split, hash(rows.tobytes()))
        if read in seen:  # controls, probes and protocols read the same images
            continue
        new.add(read)
        if (plan.uri, split) not in tables:
            tables[plan.uri, split] = open_shards(plan.uri).table(split, ["sha256", "mpp"])
        table = tables[plan.uri, split].take(pa.array(rows))
        found.append((plan.dataset, encoder, set(feature_keys(encoder, table))))
    seen |= new
    return found


def _images(all_wanted: Sequence[_Wanted], cache: str) -> Iterator[tuple[str, int, int]]:
    """(dataset, images of an encoder, those of them that are not cached)."""
    wanted: dict[tuple[str, str], set[str]] = {}
    encoders: dict[str, Crops] = {}
    for dataset, encoder, keys in all_wanted:
        encoders[encoder.key] = encoder
        wanted.setdefault((dataset, encoder.key), set()).update(keys)
    counted: dict[str, set[str]] = {}
    for (dataset, key), keys in wanted.items():
        keys -= counted.setdefault(key, set())  # an image of two datasets is embedded once
        counted[key] |= keys
        unknown = isinstance(encoders[key], _Unknown)
        known = 0 if unknown else FeatureStore(cache, f"images/{key}", width=0).count(keys)
        yield dataset, len(keys), len(keys) - known


def _reads(job: Job, entry: ModelEntry, plan: Plan) -> Iterator[tuple[Crops, str, np.ndarray]]:
    """The encoders of a grid cell, each with a split and its rows, int64 (N,), that it is applied to."""
    own = plan.protocol.split, plan.selection.rows
    if entry.path.startswith(PREFIX):
        measure, splits = reads(entry.path, plan) if isinstance(plan, CellPlan) else (None, [])
        if measure is not None:
            yield measure, *own
            for split in splits:
                yield measure, split, select(open_shards(plan.uri), plan.protocol, split=split).rows
        return
    perturbed = plan.perturbations if isinstance(plan, RobustnessPlan) else ()
    for number, one in enumerate((None, *perturbed)):
        encoder: Crops
        if job.model is not None:
            encoder = job.model.encoder(plan, one)
        else:
            view = view_of(plan.protocol)
            encoder = _Unknown(f"{view.key()} {plan.protocol.preprocessing} {number}", view)
        yield encoder, *own
        if not isinstance(plan, CellPlan):
            continue
        if entry.probe is None and isinstance(plan.fit, FitPlan):
            yield encoder, plan.fit.split, plan.fit.selection.rows
        if entry.probe is not None and plan.labelled is not None and plan.labelled.split is not None:
            split = plan.labelled.split
            yield encoder, split, select(open_shards(plan.uri), plan.protocol, split=split).rows


def _read(cache: str, kind: str) -> dict[str, Rate]:
    """The rates of a kind in a cache; none where there are none, or damaged ones."""
    system, base = filesystem(cache)
    try:
        with system.open_input_stream(f"{base}/{_FOLDER}/{kind}.json") as source:
            return {name: Rate(**rate) for name, rate in unsealed(json.loads(source.read())).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
