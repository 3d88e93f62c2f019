"""The files of a finished grid: the leaderboard, the predictions of all grid cells, and the failures."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from his2lip.config import recorded
from his2lip.evaluation.comparison import Differences, compare
from his2lip.evaluation.config import ModelEntry
from his2lip.evaluation.grid_cell import PromptF1, read_predictions, stored_predictions
from his2lip.evaluation.metrics import Metric, Predictions
from his2lip.evaluation.prompt_bands import STABLE, order_shares
from his2lip.evaluation.published_table import comparison_name, published_figures
from his2lip.evaluation.results import (
    DIGESTS,
    CellFailure,
    CellResult,
    Compared,
    OverSeeds,
    metric_fields,
    to_csv,
    to_table,
)
from his2lip.evaluation.statistics import crossed_interval
from his2lip.files import filesystem, write_file

PAPER = "paper"  # the only protocol that is compared with published figures


def write_leaderboard(folder: str, cells: Sequence[CellResult], failed: Sequence[CellFailure]) -> str:
    """Writes leaderboard.csv and .parquet, predictions.parquet and failures.json into `folder`.

    sha256.json has the digest of each, which is checked when the leaderboard is read.
    Returns the path of leaderboard.csv.
    """
    system, path = filesystem(folder)
    reasons = [recorded(failure) for failure in failed]
    written = {
        "leaderboard.csv": to_csv(cells).encode(),
        "leaderboard.parquet": _parquet(to_table(cells)),
        "predictions.parquet": _parquet(_all_predictions(folder, cells)),
        "failures.json": (json.dumps(reasons, indent=1) + "\n").encode(),
    }
    for name, data in written.items():
        write_file(system, f"{path}/{name}", data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    write_file(system, f"{path}/{DIGESTS}", (json.dumps(digests, indent=1) + "\n").encode())
    return f"{path}/leaderboard.csv"


def with_published(cells: Iterable[CellResult], cards: Mapping[str, str]) -> list[CellResult]:
    """`cells` with the paper's accuracy and F1 added to those of the `paper` protocol on real data.

    cards  dataset -> the project's card by which it is scored; a dataset with a card of one's own has none
    """
    known = {(comparison_name(row.model), comparison_name(row.dataset)): row for row in published_figures()}
    filled = []
    for cell in cells:
        card = cards.get(cell.dataset, "")
        row = known.get((comparison_name(cell.model), comparison_name(card)))
        if row and cell.protocol == PAPER and not cell.generated:
            found = {"published_accuracy": row.accuracy, "published_f1": row.macro_f1}
            cell = cell.model_copy(update=found)
        filled.append(cell)
    return filled


def with_blends(cells: Iterable[CellResult], entries: Iterable[ModelEntry]) -> list[CellResult]:
    """`cells` with the sweep and its alpha added to those whose model is a blend of two."""
    blends = {entry.name: entry.blend for entry in entries if entry.blend is not None}
    return [
        cell.model_copy(update={"blend": b.sweep, "alpha": b.alpha})
        if (b := blends.get(cell.model))
        else cell
        for cell in cells
    ]


def with_prompt_order(
    cells: Sequence[CellResult], prompt_f1: Mapping[tuple[str, str, str], PromptF1]
) -> list[CellResult]:
    """`cells` with the share of the prompt draws that keep a model's order with each other model.

    prompt_f1  model, dataset and protocol -> macro F1 of each prompt draw of each pool
    """
    shares: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for column in {(cell.dataset, cell.protocol) for cell in cells}:
        own = [cell for cell in cells if (cell.dataset, cell.protocol) == column]
        of_draws = {c.model: f1 for c in own if (f1 := prompt_f1.get((c.model, *column)))}
        shares[column] = order_shares({c.model: c.macro_f1 for c in own}, of_draws)
    filled = []
    for cell in cells:
        order = shares[cell.dataset, cell.protocol].get(cell.model, {})
        least = min(order.values(), default=None)
        filled.append(
            cell.model_copy(
                update={
                    "prompt_order": order,
                    "prompt_order_least": least,
                    "order_depends_on_prompts": least is not None and least < STABLE,
                }
            )
        )
    return filled


def with_differences(
    folder: str, cells: Sequence[CellResult], *, reference: str | None = None, margin: float | None = None
) -> list[CellResult]:
    """`cells` with how every figure compares with those of the other models on the same units.

    reference  the model that differences are from
    margin     of non-inferiority, a fraction

    The predictions are those stored below `folder`. Nothing is compared where no interval can be computed.
    """
    compared: list[dict[str, Compared]] = [{} for _ in cells]
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, cell in enumerate(cells):
        if cell.no_interval is None:
            key = (cell.dataset, cell.protocol, cell.protocol_version, cell.split_sha256, cell.groups_sha256)
            alike.setdefault(key, []).append(i)
    for places in alike.values():
        group = [cells[i] for i in places]
        for i, found in zip(places, _compare(folder, group, reference, margin), strict=True):
            compared[i] = found
    return [
        cell.model_copy(update={"reference": reference, "margin": margin, "compared": found})
        for cell, found in zip(cells, compared, strict=True)
    ]


def with_seeds(folder: str, cells: Sequence[CellResult], entries: Iterable[ModelEntry]) -> list[CellResult]:
    """`cells` with the mean of every figure over the trainings of one model that differ in their seed.

    The predictions are those stored below `folder`.
    """
    row_of = {entry.name: entry.seeds_of for entry in entries if entry.seeds_of is not None}
    groups: dict[tuple[str, ...], list[int]] = {}
    filled = list(cells)
    for i, cell in enumerate(cells):
        if (row := row_of.get(cell.model)) is not None:
            groups.setdefault((row, cell.dataset, cell.protocol), []).append(i)
    for (row, *_), places in groups.items():
        found = _over_seeds(folder, [cells[i] for i in places]) if len(places) > 1 else {}
        for i in places:
            filled[i] = cells[i].model_copy(update={"seeds_of": row, "over_seeds": found})
    return filled


def _over_seeds(folder: str, cells: Sequence[CellResult]) -> dict[str, OverSeeds]:
    """Figure -> its mean over trainings on the same units."""
    stored = [stored_predictions(folder, cell) for cell in cells]
    has_interval = all(cell.no_interval is None for cell in cells)
    found = {}
    for name, metric in metric_fields().items():
        figures = [getattr(cell, name) for cell in cells]
        if None in figures:
            continue
        values, limits = np.array(figures, dtype=np.float64), None
        if has_interval:
            replicates = np.stack([metric.replicates(*own) for own in stored])
            limits = crossed_interval(values, replicates, bounds=metric.bounds)
        low, high = limits or (None, None)
        found[name] = OverSeeds(
            seeds=len(cells),
            mean=float(values.mean()),
            deviation=float(values.std(ddof=1)),
            lo=low,
            hi=high,
        )
    return found


def _compare(
    folder: str, cells: Sequence[CellResult], reference: str | None, margin: float | None
) -> list[dict[str, Compared]]:
    """Of each grid cell of the same units: figure -> how it compares."""
    stored = [stored_predictions(folder, cell) for cell in cells]
    found: list[dict[str, Compared]] = [{} for _ in cells]
    for name, metric in metric_fields().items():
        expected = [_is_expectation(metric, cell, own[0]) for cell, own in zip(cells, stored, strict=True)]
        replicates = [
            np.full(int(clusters.max()) + 1, getattr(cell, name))
            if constant
            else metric.replicates(predictions, clusters)
            for cell, (predictions, clusters), constant in zip(cells, stored, expected, strict=True)
        ]
        known = [i for i, own in enumerate(replicates) if np.isfinite(own).all()]
        if len(known) < 2:
            continue
        values = np.array([getattr(cells[i], name) for i in known])
        differences = compare(values, np.stack([replicates[i] for i in known]))
        top = differences.top_group(np.array([not expected[i] for i in known])).tolist()
        detectable = differences.detectable()
        base = next((place for place, i in enumerate(known) if cells[i].model == reference), None)
        for place, i in enumerate(known):
            row = Compared(top=top[place], detectable=detectable)
            if base is not None and base != place:
                row = row.model_copy(update=_difference(differences, place, base, margin))
            found[i][name] = row
    return found


def _is_expectation(metric: Metric, cell: CellResult, predictions: Predictions) -> bool:
    """Whether a figure does not follow from the stored predictions.

    It is an expectation over draws then, such as chance, and the predictions are only one of the draws. It is
    compared as a constant and is never in the top group: the error of its own draws is not known here.
    """
    value = getattr(cell, metric.name)
    return value is not None and not math.isclose(metric.compute(predictions) or 0.0, value, abs_tol=1e-9)


def _difference(differences: Differences, i: int, base: int, margin: float | None) -> dict[str, Any]:
    """The fields of `Compared` that are about the reference."""
    difference = float(differences.values[i] - differences.values[base])
    low, high = differences.interval(i, base) or (None, None)
    # Without an interval all clusters agree on the difference, or there are too few of them.
    least = low if low is not None else difference if np.isfinite(differences.reach) else None
    return {
        "difference": difference,
        "difference_lo": low,
        "difference_hi": high,
        "non_inferior": None if margin is None or least is None else least > -margin,
    }


def _all_predictions(folder: str, cells: Sequence[CellResult]) -> pa.Table:
    """The predictions of all grid cells; score columns of other protocols' classes are null."""
    names = ("model", "dataset", "protocol")
    tables = []
    for cell in cells:
        predictions = read_predictions(folder, cell)
        of_cell = {name: pa.array([getattr(cell, name)] * len(predictions), pa.string()) for name in names}
        tables.append(pa.table(of_cell | {name: predictions[name] for name in predictions.column_names}))
    empty = pa.table({name: pa.array([], pa.string()) for name in names})
    return pa.concat_tables(tables or [empty], promote_options="default")


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
