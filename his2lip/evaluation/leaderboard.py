"""The files of a finished grid: the leaderboard, the predictions of all grid cells, and the failures."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from his2lip.config import Config, recorded
from his2lip.errors import ConfigError, first_line
from his2lip.evaluation.comparison import Differences, compare
from his2lip.evaluation.config import PAPER_PROTOCOL, BenchmarkConfig, ModelEntry
from his2lip.evaluation.metrics import Jackknife, Metric, Predictions, jackknife
from his2lip.evaluation.prompt_bands import STABLE, order_shares
from his2lip.evaluation.published_table import comparison_name, published_figures
from his2lip.evaluation.results import (
    DIGESTS,
    CellFailure,
    CellResult,
    Compared,
    OverSeeds,
    metric_fields,
    to_tables,
)
from his2lip.evaluation.statistics import crossed_interval
from his2lip.evaluation.stored_cell import (
    PromptF1,
    StoredCell,
    figures_from,
    predictions_schema,
    read_predictions,
    stored_predictions,
)
from his2lip.evaluation.task_results import TaskCell
from his2lip.files import answers, filesystem, read_file, write_file

FRAME = "board.json"  # the rows of a board and what they are given beside their grid cells
_NAMES = ("model", "dataset", "protocol")
_ROW_GROUP = 1 << 17  # rows from which a row group of predictions.parquet is written
GIVEN = (  # fields of a row that do not follow from its grid cell
    *("model", "dataset", "protocol", "cell", "in_domain", "generated", "basis", "repeated", "cut_prompts"),
    *("overlap_units", "overlap_images", "overlap_cases", "published_accuracy", "published_f1"),
    *("blend", "alpha", "seeds_of", "role"),
)


_TYPES: dict[str, Any] = {  # those of an earlier version may lack fields that do not name a row
    name: (CellResult.model_fields[name].annotation, ... if name in (*_NAMES, "cell") else None)
    for name in GIVEN
}
_Row: type[Config] = pydantic.create_model("_Row", __base__=Config, **_TYPES)
_Rows: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(list[_Row])  # type: ignore[valid-type]


class Frame(Config):
    """What a board is made of: with the stored grid cells, all files of the leaderboard follow from it."""

    rows: list[dict[str, Any]]
    """The fields `GIVEN` of each row, in order."""
    failed: list[CellFailure]
    """Grid cells that could not be scored."""
    reference: str | None = None
    """The model that differences are from."""
    margin: float | None = None
    """Of non-inferiority, a fraction."""
    config: dict[str, Any] | None = None
    """The resolved benchmark, null for boards that were merged."""
    merged_from: list[str] = []
    """The folders of the boards that were merged."""
    resolved: dict[str, int | float] | None = None
    """What `auto` stood for in the benchmark on the cluster that ran it, by option."""

    @pydantic.field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        _Rows.validate_python(rows, strict=True)
        return rows

    @classmethod
    def of(
        cls,
        cells: Sequence[CellResult],
        failed: Sequence[CellFailure],
        config: BenchmarkConfig | None = None,
        resolved: Mapping[str, float] | None = None,
    ) -> Frame:
        return cls(
            rows=[{name: getattr(cell, name) for name in GIVEN} for cell in cells],
            failed=[CellFailure.model_validate(recorded(failure)) for failure in failed],
            reference=next((cell.reference for cell in cells), None),
            margin=next((cell.margin for cell in cells), None),
            config=None if config is None else recorded(config),
            resolved=None if resolved is None else dict(resolved),
        )

    @classmethod
    def read(cls, folder: str) -> Frame:
        """The frame of a board. Raises ConfigError where there is none, or one of another shape.

        Raises StorageError, as `answers`.
        """
        system, path = filesystem(folder)
        try:
            tree = json.loads(read_file(system, f"{path}/{FRAME}"))
            json.dumps(tree, ensure_ascii=False).encode()  # names with half a character cannot be written
            return cls.model_validate(tree)
        except FileNotFoundError:
            with answers(folder):
                known = system.get_file_info(f"{path}/leaderboard.csv").is_file
            what, fix = (
                (f"this folder has no {FRAME}: an earlier version wrote it", "run his2lip benchmark again")
                if known
                else ("there is no benchmark here", "give the folder of one, STORAGE/benchmark/NAME")
            )
            raise ConfigError(what, where=folder, key=FRAME, fix=fix) from None
        except (ValueError, RecursionError) as error:
            what = f"{FRAME} cannot be read: {_fault(error)}"
            raise ConfigError(what, where=folder, key=FRAME, fix="run his2lip benchmark again") from None

    def source_of(self, model: str) -> str | None:
        """What loads the model of a row; None for a point between two models, and on a merged board."""
        entries: list[dict[str, Any]] = (self.config or {}).get("models", [])
        own = (entry for entry in entries if entry["name"] == model and entry.get("blend") is None)
        return next((str(entry["path"]) for entry in own), None)


def _fault(error: Exception) -> str:
    """The first fault of a frame in one line."""
    if not isinstance(error, pydantic.ValidationError):
        return first_line(error)
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first_line(ValueError(first["msg"])))))


def write_leaderboard(
    folder: str,
    cells: Sequence[CellResult],
    failed: Sequence[CellFailure],
    config: BenchmarkConfig | None = None,
    *,
    resolved: Mapping[str, float] | None = None,
) -> str:
    """Writes the files of `leaderboard_files` into `folder`. Returns the path of leaderboard.csv.

    resolved  as in `Frame`
    """
    return write_board(folder, cells, Frame.of(cells, failed, config, resolved))


def write_board(folder: str, cells: Sequence[CellResult], frame: Frame) -> str:
    """The same for a frame that is known."""
    system, path = filesystem(folder)
    for name, data in leaderboard_files(folder, cells, frame).items():
        with answers(folder):
            write_file(system, f"{path}/{name}", data, what="a file of the leaderboard")
    return f"{path}/leaderboard.csv"


def leaderboard_files(folder: str, cells: Sequence[CellResult], frame: Frame) -> dict[str, bytes]:
    """leaderboard.csv and .parquet, predictions.parquet, failures.json and board.json, as they are written.

    The last, sha256.json, has the digest of each, which is checked when the leaderboard is read.
    """
    text, table = to_tables(cells)
    files = {
        "leaderboard.csv": text.encode(),
        "leaderboard.parquet": _parquet(table),
        "predictions.parquet": _all_predictions(folder, cells),
        "failures.json": (json.dumps([recorded(f) for f in frame.failed], indent=1) + "\n").encode(),
        FRAME: (json.dumps(_written(frame), indent=1, ensure_ascii=False) + "\n").encode(),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return files | {DIGESTS: (json.dumps(digests, indent=1) + "\n").encode()}


def _written(frame: Frame) -> dict[str, Any]:
    """The content of board.json, without what is not known: boards of earlier versions have no `resolved`."""
    tree = frame.model_dump(mode="json")
    return tree if frame.resolved is not None else {k: v for k, v in tree.items() if k != "resolved"}


def row_name(row: CellResult | TaskCell | Mapping[str, Any]) -> str:
    """How messages name a row, from its record or its fields by name."""
    tree = row if isinstance(row, Mapping) else {name: getattr(row, name) for name in _NAMES}
    return f"{tree['model']} on {tree['dataset']} ({tree['protocol']})"


def rows_of(folder: str, frame: Frame, cells: Mapping[str, StoredCell]) -> list[CellResult]:
    """The rows of a board from its frame and its grid cells by identity, whose figures are not used.

    Raises KeyError for a grid cell that is not there.
    """
    rows = [cells[given["cell"]].result.model_copy(update=dict(given)) for given in frame.rows]
    rows = [row.model_copy(update=figures_from(replace(cells[row.cell], result=row))) for row in rows]
    of_draws = {(r.model, r.dataset, r.protocol): cells[r.cell].prompt_f1 for r in rows}
    rows = over_seeds(folder, with_prompt_order(rows, of_draws))
    return with_differences(folder, rows, reference=frame.reference, margin=frame.margin)


def with_published(cells: Iterable[CellResult], cards: Mapping[str, str]) -> list[CellResult]:
    """`cells` with the paper's accuracy and F1 added to those of the `paper` protocol on real data.

    A training of several has the figures that the paper has for the model of all of them.

    cards  dataset -> the project's card by which it is scored; a dataset with a card of one's own has none
    """
    known = {(comparison_name(row.model), comparison_name(row.dataset)): row for row in published_figures()}
    filled = []
    for cell in cells:
        card = cards.get(cell.dataset, "")
        row = known.get((comparison_name(cell.seeds_of or cell.model), comparison_name(card)))
        if row and cell.protocol == PAPER_PROTOCOL and cell.role == "report" and not cell.generated:
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
    Probes are compared with each other, since they read labels; draws of a few-shot probe are not compared.
    """
    compared: list[dict[str, Compared]] = [{} for _ in cells]
    means = [_without_difference(cell.over_seeds) for cell in cells]
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, cell in enumerate(cells):
        if cell.no_interval is None and not cell.is_few_shot:
            column = (cell.dataset, cell.protocol, cell.protocol_version)
            key = (*column, cell.split_sha256, cell.groups_sha256, cell.is_probe)
            alike.setdefault(key, []).append(i)
    for places in alike.values():
        group = [cells[i] for i in places]
        found = _compare(folder, group, reference, margin, [means[i] for i in places])
        for i, own in zip(places, found, strict=True):
            compared[i] = own
    given = {"reference": reference, "margin": margin}
    return [
        cell.model_copy(update=given | {"compared": found, "over_seeds": own})
        for cell, found, own in zip(cells, compared, means, strict=True)
    ]


def _without_difference(means: Mapping[str, OverSeeds]) -> dict[str, OverSeeds]:
    none = {"difference": None, "difference_lo": None, "difference_hi": None}
    return {name: own.model_copy(update=none) for name, own in means.items()}


def with_seeds(folder: str, cells: Iterable[CellResult], entries: Iterable[ModelEntry]) -> list[CellResult]:
    """`cells` with the mean of every figure over the trainings of one model that differ in their seed.

    The predictions are those stored below `folder`.
    """
    row_of = {entry.name: entry.seeds_of for entry in entries}
    return over_seeds(folder, [c.model_copy(update={"seeds_of": row_of.get(c.model)}) for c in cells])


def over_seeds(folder: str, cells: Sequence[CellResult]) -> list[CellResult]:
    """The same for cells that have their `seeds_of`."""
    groups: dict[tuple[str, ...], list[int]] = {}
    filled = list(cells)
    for i, cell in enumerate(cells):
        if cell.seeds_of is not None:
            units = cell.split_sha256, cell.groups_sha256
            groups.setdefault((cell.seeds_of, cell.dataset, cell.protocol, *units), []).append(i)
    for places in groups.values():
        found = _over_seeds(folder, [cells[i] for i in places]) if len(places) > 1 else {}
        for i in places:
            filled[i] = cells[i].model_copy(update={"over_seeds": found})
    return filled


def _over_seeds(folder: str, cells: Sequence[CellResult]) -> dict[str, OverSeeds]:
    """Figure -> its mean over trainings on the same units."""
    stored = _jackknifed(folder, cells)
    has_interval = all(cell.no_interval is None for cell in cells)
    found = {}
    for name, metric in metric_fields().items():
        figures = [getattr(cell, name) for cell in cells]
        if None in figures:
            continue
        values, limits = np.array(figures, dtype=np.float64), None
        if has_interval and (effective := stored[0].effective(metric)) is not None:
            replicates = np.stack([own.found[name][1] for own in stored])
            limits = crossed_interval(values, replicates, bounds=metric.bounds, effective=effective)
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
    folder: str,
    cells: Sequence[CellResult],
    reference: str | None,
    margin: float | None,
    means: Sequence[dict[str, OverSeeds]],
) -> list[dict[str, Compared]]:
    """Of each grid cell of the same units: figure -> how it compares.

    means  of each: figure -> its mean over trainings, which gets its difference from the reference here
    """
    stored = _jackknifed(folder, cells)
    found: list[dict[str, Compared]] = [{} for _ in cells]
    expected = [_is_expectation(cell, own) for cell, own in zip(cells, stored, strict=True)]
    for name, metric in metric_fields().items():
        of_cells = [(getattr(cell, name), own.found[name]) for cell, own in zip(cells, stored, strict=True)]
        replicates = [
            np.full_like(without, np.nan if figure is None else figure) if constant else without
            for (figure, (_, without)), constant in zip(of_cells, expected, strict=True)
        ]
        known = [i for i, own in enumerate(replicates) if np.isfinite(own).all()]
        if len(known) < 2:
            continue
        values = np.array([getattr(cells[i], name) for i in known])
        units = stored[known[0]]
        shares = metric.shares(units.predictions, units.clusters)
        contributions = [
            values[place] * shares if expected[i] else stored[i].contributions(metric)
            for place, i in enumerate(known)
        ]
        differences = compare(
            values, np.stack([replicates[i] for i in known]), np.stack(contributions), shares
        )
        among = np.array([not expected[i] for i in known])
        top, groups = differences.top_group(among).tolist(), differences.groups(among)
        models = np.array([not cells[i].is_baseline for i in known])
        detectable = differences.detectable(models)
        base = next((place for place, i in enumerate(known) if cells[i].model == reference), None)
        for place, i in enumerate(known):
            row = Compared(top=top[place], groups=groups[place], detectable=detectable)
            if base is not None and base != place:
                row = row.model_copy(update=_difference(differences, place, base, margin))
            found[i][name] = row
        if base is not None:
            of_known = {i: replicates[i] for i in known}
            effective = stored[known[base]].effective(metric)
            _compare_means(metric, cells, of_known, known[base], means, effective=effective)
    return found


@dataclass(frozen=True)
class _Stored:
    """The scored units of a grid cell, with the number of each unit's cluster, and what `jackknife` finds."""

    predictions: Predictions
    clusters: np.ndarray
    found: Mapping[str, Jackknife]

    def effective(self, metric: Metric) -> float | None:
        """The effective number of clusters; None where they are too few for an interval."""
        if not metric.has_interval(self.predictions, self.clusters):
            return None
        return metric.effective(self.predictions, self.clusters)

    def contributions(self, metric: Metric) -> np.ndarray:
        value, replicates = self.found[metric.name]
        return metric.contributions(self.predictions, self.clusters, replicates, value=value)


def _jackknifed(folder: str, cells: Sequence[CellResult]) -> list[_Stored]:
    """What is stored of each grid cell. Rows of the same weights share one, which is read once."""
    known: dict[str, _Stored] = {}
    for cell in cells:
        if cell.cell not in known:
            predictions, clusters = stored_predictions(folder, cell)
            known[cell.cell] = _Stored(predictions, clusters, jackknife(predictions, clusters))
    return [known[cell.cell] for cell in cells]


def _compare_means(
    metric: Metric,
    cells: Sequence[CellResult],
    replicates: Mapping[int, np.ndarray],
    base: int,
    means: Sequence[dict[str, OverSeeds]],
    *,
    effective: float | None,
) -> None:
    """Gives each mean over trainings its difference from the grid cell number `base`, paired by cluster.

    That cell is of one training, whose own seed variance is not in the limits.

    replicates  of the grid cells that have them, by number: the figure without one cluster each
    effective   the effective number of clusters; None: too few for an interval
    """
    name, (low, high) = metric.name, metric.bounds
    trainings: dict[str, list[int]] = {}
    for i in replicates:
        if (row := cells[i].seeds_of) is not None and name in means[i]:
            trainings.setdefault(row, []).append(i)
    for own in trainings.values():
        if base in own or len(own) != means[own[0]][name].seeds:
            continue
        apart = np.array([getattr(cells[i], name) - getattr(cells[base], name) for i in own])
        without = np.stack([replicates[i] - replicates[base] for i in own])
        bounds = (low - high, high - low)
        limits = None
        if effective is not None:
            limits = crossed_interval(apart, without, bounds=bounds, effective=effective)
        changes = dict(zip(("difference_lo", "difference_hi"), limits or (None, None), strict=True))
        for i in own:
            means[i][name] = means[i][name].model_copy(update={"difference": float(apart.mean()), **changes})


def _is_expectation(cell: CellResult, own: _Stored) -> bool:
    """Whether any figure of a row does not follow from its stored predictions.

    Its figures are expectations over draws then, such as those of chance, and the predictions are only one of
    the draws. They are compared as constants and are never in the top group: the error of their own draws is
    not known here. Some may be equal to those of the draw: shuffled labels do not change the accuracy of a
    model that predicts one class.
    """
    pairs = ((getattr(cell, name), known) for name, (known, _) in own.found.items())
    return any(v is not None and not math.isclose(known or 0.0, v, abs_tol=1e-9) for v, known in pairs)


def _difference(differences: Differences, i: int, base: int, margin: float | None) -> dict[str, Any]:
    """The fields of `Compared` that are about the reference."""
    difference = float(differences.values[i] - differences.values[base])
    low, high = differences.interval(i, base) or (None, None)
    # Without an interval all clusters agree on the difference, or there are too few of them.
    least = low if low is not None else difference if differences.has_limits else None
    return {
        "difference": difference,
        "difference_lo": low,
        "difference_hi": high,
        "non_inferior": None if margin is None or least is None else least > -margin,
    }


def _all_predictions(folder: str, cells: Sequence[CellResult]) -> bytes:
    """The predictions of all grid cells, as Parquet; score columns of other protocols' classes are null.

    Only one row group is in memory at a time, since these columns are many where the grid is large.
    """
    own = pa.schema([(name, pa.string()) for name in _NAMES])
    schemas = [own, *(predictions_schema(folder, cell) for cell in cells)]
    empty = pa.unify_schemas(schemas, promote_options="default").remove_metadata().empty_table()
    out = io.BytesIO()
    with pq.ParquetWriter(out, empty.schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for cell in cells:
            predictions = read_predictions(folder, cell)
            of_cell = {n: pa.array([getattr(cell, n)] * len(predictions), pa.string()) for n in _NAMES}
            waiting.append(pa.table(of_cell | {n: predictions[n] for n in predictions.column_names}))
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables([empty, *waiting], promote_options="default"))
                waiting = []
        if waiting or not cells:
            writer.write_table(pa.concat_tables([empty, *waiting], promote_options="default"))
    return out.getvalue()


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
