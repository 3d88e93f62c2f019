"""Verification of a board from the images: a sample is embedded again, and every row is scored again."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from his2lip.config import resolved, validate
from his2lip.data.shards import ShardSet
from his2lip.errors import ConfigError, first_line
from his2lip.evaluation.cell_files import DamagedCellError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.embeddings import Embedded, EmbeddingCache, encode_rows
from his2lip.evaluation.encoders import ImageEncoder, SentenceEncoder
from his2lip.evaluation.grid_cell import CellPlan, Plan, Scorer, run_cell
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_scorers import scorers
from his2lip.evaluation.leaderboard import FRAME, Frame, row_name
from his2lip.evaluation.results import CellResult
from his2lip.evaluation.stored_cell import StoredCell, figures_from, read_cell
from his2lip.evaluation.task_results import TaskCell, read_tasks
from his2lip.evaluation.verify import OF_RECORDS, Mismatch, Verified, alike

SAMPLE = 32  # images of each split that are embedded again for each model, view and preprocessing
SEED = 0  # of the sample
# Largest relative difference |a - b| / |b| of a feature on the same kind of device, where the order of
# summation may depend on the batch.
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
SCORE_TOLERANCE = 1e-6  # of figures and scores, which are computed from the cached features

_INPUTS = {
    "split_sha256": "the dataset has other units or labels now",
    "images_sha256": "the dataset has other images now",
    "groups_sha256": "the dataset has other cases or groups now",
}


class CheckedCache(EmbeddingCache):
    """The cache of a benchmark, that embeds a seeded sample of what is asked for again and compares it.

    mismatches  (what, difference) of features that are not those of their images or sentences
    images      number of images that were embedded again; sentences likewise
    """

    def __init__(self, root: str, *, tolerance: float, sample: int, seed: int) -> None:
        super().__init__(root)
        self.tolerance, self.sample, self.seed = tolerance, sample, seed
        self.mismatches: list[tuple[str, float]] = []
        self.images = self.sentences = 0
        self.largest = 0.0
        self._done: set[tuple[str, ...]] = set()

    def embed(
        self,
        encoder: ImageEncoder,
        shards: ShardSet,
        split: str,
        *,
        rows: np.ndarray | None = None,
        **options: Any,
    ) -> Embedded:
        found = super().embed(encoder, shards, split, rows=rows, **options)
        every = np.arange(len(found.table)) if rows is None else np.asarray(rows)
        key = (encoder.key, shards.uri, split)
        if key not in self._done:
            self._done.add(key)
            rng = np.random.default_rng(self.seed)
            places = np.sort(rng.choice(len(every), size=min(self.sample, len(every)), replace=False))
            by_row = {int(every[place]): int(place) for place in places}
            for row, fresh in encode_rows(encoder, shards, split, sorted(by_row)):
                place = by_row[row]
                self.images += 1
                self._compare(
                    found.table["patch_id"][place].as_py(), found.features[found.row == place], fresh
                )
        return found

    def embed_text(self, encoder: SentenceEncoder, sentences: Sequence[str]) -> np.ndarray:
        found = super().embed_text(encoder, sentences)
        new = [i for i, s in enumerate(sentences) if (encoder.key, s) not in self._done]
        self._done |= {(encoder.key, sentences[i]) for i in new}
        if new:
            self.sentences += len(new)
            for i, fresh in zip(new, encoder.encode([sentences[i] for i in new]), strict=True):
                self._compare(f"the sentence '{sentences[i]}'", found[i], fresh)
        return found

    def _compare(self, what: str, stored: np.ndarray, fresh: np.ndarray) -> None:
        if stored.shape != fresh.shape:
            self.mismatches.append((what, math.inf))
            return
        size = float(np.linalg.norm(stored.astype(np.float64)))
        away = float(np.linalg.norm(fresh.astype(np.float64) - stored)) / (size or 1.0)
        self.largest = max(self.largest, away)
        if not away <= self.tolerance:
            self.mismatches.append((what, away))


def verify_images(folder: str, *, sample: int = SAMPLE, seed: int = SEED) -> Verified:
    """Scores every row of a board again from its images, its model and its prompts, in this process.

    A seeded sample of images, and all sentences, are embedded again and compared with the cached features
    (`TOLERANCE`). All units are then scored again from the cached features, and the predictions and figures
    compared with those that were stored (`SCORE_TOLERANCE`). Images that are not cached are embedded.

    Raises ConfigError for a folder without board.json, and for a merged board.
    """
    frame = Frame.read(folder)
    if frame.config is None:
        what = "this board was merged, and its models and images may be on other machines"
        fix = f"verify {' and '.join(frame.merged_from) or 'the benchmark'} with --verify images"
        raise ConfigError(what, where=folder, key=FRAME, fix=fix)
    config = validate(BenchmarkConfig, frame.config, where=f"{folder}/{FRAME}")
    tolerance = TOLERANCE[config.precision]
    cache = CheckedCache(config.cache, tolerance=tolerance, sample=sample, seed=seed)
    plans, failed = plan_cells(config)
    found = [Mismatch(f.dataset, row_name(f.model_dump()), "", f.reason) for f in failed]
    left = {(r["model"], r["dataset"], r["protocol"]): r for r in frame.rows}
    tasks = {(cell.model, cell.dataset, cell.task): cell for cell in read_tasks(folder)}
    rows: list[CellResult | TaskCell] = []
    for entry, plan, scorer in scorers(config, plans, cache):
        key = (entry.name, plan.dataset, plan.protocol_name)
        task, given = tasks.pop(key, None), left.pop(key, None)
        if task is None and given is None:
            continue
        given = given or {"model": entry.name, "dataset": plan.dataset, "protocol": plan.protocol_name}
        cache.mismatches = []
        try:
            if isinstance(scorer, Exception):
                raise scorer
            if task is not None:
                found += _different_task(task, plan, scorer)
                rows.append(task)
            elif isinstance(plan, CellPlan):
                stored = read_cell(folder, given["cell"], given)
                found += _different(stored, plan, scorer)
                rows.append(stored.result)
        except DamagedCellError as error:
            found.append(Mismatch(f"cells/{given['cell']}", row_name(given), "", str(error)))
            continue
        except Exception as error:  # named, and stops no other row
            found.append(Mismatch("model or dataset", row_name(given), "", first_line(error)))
            continue
        found += [
            Mismatch("cached features", row_name(given), what, f"{away:.2g} away from the model's")
            for what, away in cache.mismatches
        ]
    gone = [row_name(row) for row in left.values()] + [row_name(cell) for cell in tasks.values()]
    found += [Mismatch("benchmark", name, "", "its model or dataset is gone") for name in gone]
    again = (
        f"{cache.images} images (at most {sample} of a split, seed {seed}) and {cache.sentences} sentences"
    )
    away = f"features differ by at most {cache.largest:.1e} of their length, of {tolerance:g} allowed"
    notes = [f"{again} were embedded again: {away}"]
    if cache.counts.images:
        notes.append(f"{cache.counts.images} images were not cached and have been embedded")
    return Verified(rows, ["the cached features", "the predictions"], list(dict.fromkeys(found)), notes)


def _different(stored: StoredCell, plan: CellPlan, scorer: Scorer) -> Iterator[Mismatch]:
    """What of a stored grid cell is not what its scorer gives now."""
    result, row = stored.result, row_name(stored.result)
    inputs = [
        ("weights_sha256", scorer.weights, "the model has other weights now"),
        (
            "prompts_sha256",
            plan.prompts.digest if scorer.uses_prompts else None,
            "there are other prompts now",
        ),
        *((name, getattr(plan.selection, name), what) for name, what in _INPUTS.items()),
    ]
    changed = [
        Mismatch("inputs", row, name, what) for name, now, what in inputs if now != getattr(result, name)
    ]
    if changed:
        yield from changed
        return
    if result.encoder != scorer.identity(plan):
        what = "features would be of another preprocessing, decoder or precision now"
        yield Mismatch("inputs", row, "encoder", what)
        return
    with tempfile.TemporaryDirectory() as place:
        again = read_cell(place, run_cell(scorer, plan, place).result.cell, {})
    yield from _different_records(result, again.result, FRAME)
    if stored.evidence.device != again.evidence.device:
        what = (
            f"computed on {stored.evidence.device}, and here on {again.evidence.device}: compare on the same"
        )
        yield Mismatch("device", row, "", what)
        return
    tables = [cell.predictions.sort_by("patch_id") for cell in (stored, again)]
    reordered = not stored.predictions["patch_id"].equals(again.predictions["patch_id"])
    for column in stored.predictions.column_names:
        if column == "rows" and reordered:  # another preparation of the same units
            continue
        own = (table[column].to_pylist() for table in tables)
        changed_units = [
            i for i, (a, b) in enumerate(zip(*own, strict=True)) if not alike(a, b, within=SCORE_TOLERANCE)
        ]
        if changed_units:
            first = tables[0]["patch_id"][changed_units[0]].as_py()
            what = f"{len(changed_units)} of {len(stored.predictions)} units are otherwise, the first {first}"
            yield Mismatch(f"cells/{result.cell}/predictions.parquet", row, column, what)
    ours, theirs = resolved(again.result), resolved(result)
    for name in figures_from(stored):
        if not alike(ours[name], theirs[name], within=SCORE_TOLERANCE):
            yield Mismatch(f"cells/{result.cell}/cell.json", row, name, "another figure than from the images")


def _different_records(
    cell: CellResult | TaskCell, again: CellResult | TaskCell, file: str
) -> Iterator[Mismatch]:
    """What of a row does not follow from its model's record and its dataset's card any more."""
    ours, theirs = resolved(again), resolved(cell)
    for name in OF_RECORDS:
        if name in theirs and ours[name] != theirs[name]:
            what = f"{theirs[name]} on the board, {ours[name]} by its model and its dataset now"
            yield Mismatch(file, row_name(cell), name, what)


def _different_task(cell: TaskCell, plan: Plan, scorer: Scorer) -> Iterator[Mismatch]:
    """What of the figures of a task is not what its scorer gives now."""
    with tempfile.TemporaryDirectory() as place:
        again = plan.run(scorer, place).result
    yield from _different_records(cell, again, "tasks.json")
    ours, theirs = resolved(again), resolved(cell)
    for name in ("weights_sha256", "split_sha256", "images_sha256", "settings_sha256", "encoder", "rows"):
        if not alike(ours[name], theirs[name], within=SCORE_TOLERANCE):
            yield Mismatch("tasks.json", row_name(cell), name, "another one than now")
            return
