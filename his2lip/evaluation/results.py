"""The record of one grid cell, and what is derived from its fields: CSV, Parquet, and figures by name.

The fields of metrics come from `Figures` in metrics.py.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pydantic

from his2lip.config import Config
from his2lip.data.shards import origin_of
from his2lip.errors import ConfigError, did_you_mean, first_line
from his2lip.evaluation.config import DEFAULT_PROTOCOL, PREFIX, PROBE_PREFIX
from his2lip.evaluation.metrics import METRICS, ClassFigures, Figures, Metric, Predictions, jackknife
from his2lip.evaluation.prompt_bands import DRAWS, SENTENCES, STABLE
from his2lip.evaluation.reliability import Calibrated
from his2lip.evaluation.statistics import Clusters, degrees_of, interval, standard_error
from his2lip.files import answers
from his2lip.parquet import read_parquet

_FIX = "run his2lip benchmark again: it writes the tables again from the finished grid cells"

_SHA256 = "sha256"
_FRACTION = "fraction"
_UNITS = "units"
_JSON = "json"


@dataclass(frozen=True)
class Field:
    """What a field of the record is.

    description  its meaning, in words
    unit         "fraction", "coefficient", "units", "sha256" and so on; empty for names and flags
    figure       whether it measures the model: MLflow logs these fields
    metric       what computes it; None for everything else, limits of intervals included
    """

    description: str
    unit: str = ""
    figure: bool = False
    metric: Metric | None = None


def limit(which: str, unit: str = "fraction") -> Field:
    """The lower or the upper limit of a figure's interval."""
    return Field(f"{which} limit of the 95 % interval; null where there is none", unit, figure=True)


def _of_prompt_draws(which: str) -> Field:
    draws = f"{DRAWS} draws of {SENTENCES} sentences per class"
    what = f"{which} of macro F1 over {draws}; null where they do not differ"
    return Field(what, "fraction", figure=True)


def overlap(what: str) -> Field:
    """A number of scored units that the model was trained on."""
    description = f"scored units whose {what} the model was trained on; null where that is not known"
    return Field(description, _UNITS, figure=True)


Lower = Annotated[float | None, limit("lower")]
Upper = Annotated[float | None, limit("upper")]
LowerCoefficient = Annotated[float | None, limit("lower", "coefficient")]
UpperCoefficient = Annotated[float | None, limit("upper", "coefficient")]

DIGESTS = "sha256.json"  # name of a file -> its sha256, for the files of a leaderboard in its folder


class PoolFigures(Config):
    """Macro F1 under another pool of prompts, as fractions: its whole pool, then its prompt draws.

    median, lo, hi  median, 5 % and 95 % quantile over the draws; null where they do not differ
    sentences       sentences of the class that has fewest
    """

    macro_f1: float
    median: float | None
    lo: float | None
    hi: float | None
    sentences: int
    prompts_sha256: str


class Compared(Config):
    """How a figure of a model compares with those of the other models on the same units."""

    top: bool
    """Whether it cannot be told from the best one."""
    groups: str = ""
    """Letters: two models that share one cannot be told apart; empty for an expectation, such as chance."""
    detectable: float | None
    """The smallest difference of two models that these units show with a probability of 80 %, for the median
    pair; null without two models, since baselines and controls are left out."""
    difference: float | None = None
    """The figure minus that of the reference."""
    difference_lo: float | None = None
    difference_hi: float | None = None
    """Limits at 95 % for all pairs of models together."""
    non_inferior: bool | None = None
    """Whether the lower limit is above minus the margin."""

    @property
    def difference_interval(self) -> tuple[float, float] | None:
        low, high = self.difference_lo, self.difference_hi
        return None if low is None or high is None else (low, high)


class OverSeeds(Config):
    """A figure over trainings of one model that differ only in their seed."""

    seeds: int
    """Number of trainings."""
    mean: float
    deviation: float
    """Standard deviation over the trainings."""
    lo: float | None
    hi: float | None
    """Limits of the 95 % interval of the mean, over seeds and clusters; null where there is none."""
    difference: float | None = None
    """The mean minus the figure of the reference; null where that is one of the trainings."""
    difference_lo: float | None = None
    difference_hi: float | None = None
    """Limits at 95 % for this difference alone, over seeds and clusters.

    The reference is one training, whose own seed variance is not in them.
    """

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.lo is None or self.hi is None else (self.lo, self.hi)


class CellResult(Figures):
    """The figures of one grid cell, (model, protocol of a dataset), and what they were computed from."""

    model: Annotated[str, Field("name of the model or baseline in the benchmark")]
    dataset: Annotated[str, Field("name of the dataset")]
    protocol: Annotated[str, Field("name of the dataset's protocol")]
    n: Annotated[int, Field("scored units: patches, images or slides", _UNITS)]
    clusters: Annotated[int, Field("groups of units that depend on each other, as of a case", _UNITS)]
    cluster_kind: Annotated[str, Field("what these groups are: case, else slide, else file")]
    no_interval: Annotated[str | None, Field("why there are no intervals; null where there are")]
    accuracy_lo: Lower = None
    accuracy_hi: Upper = None
    macro_f1_lo: Lower = None
    macro_f1_hi: Upper = None
    balanced_accuracy_lo: Lower = None
    balanced_accuracy_hi: Upper = None
    chance_corrected_lo: LowerCoefficient = None
    chance_corrected_hi: UpperCoefficient = None
    chance_corrected_df: Annotated[
        float | None, Field("degrees of freedom of this interval; null where there is none, and for chance")
    ] = None
    chance_corrected_se: Annotated[
        float | None, Field("standard error of the figure; null where there is no interval, and for chance")
    ] = None
    kappa_lo: LowerCoefficient = None
    kappa_hi: UpperCoefficient = None
    quadratic_kappa_lo: LowerCoefficient = None
    quadratic_kappa_hi: UpperCoefficient = None
    sensitivity_lo: Lower = None
    sensitivity_hi: Upper = None
    specificity_lo: Lower = None
    specificity_hi: Upper = None
    auroc_lo: Lower = None
    auroc_hi: Upper = None
    caveat: Annotated[
        str | None, Field("what to know before these figures are compared; null where there is nothing")
    ] = None
    positive: Annotated[str | None, Field("the positive class of two; null for more classes")]
    published_accuracy: Annotated[float | None, Field("the paper's accuracy for this cell", _FRACTION)] = None
    published_f1: Annotated[float | None, Field("the paper's macro F1 for this cell", _FRACTION)] = None
    weights_sha256: Annotated[str, Field("tensor digest of the model, or the baseline and its version")]
    prompts_sha256: Annotated[str | None, Field("digest of the prompts; null without prompts", _SHA256)]
    split_sha256: Annotated[str, Field("digest of the units and their labels", _SHA256)]
    images_sha256: Annotated[str, Field("digest of the images and their microns per pixel", _SHA256)]
    groups_sha256: Annotated[str, Field("digest of what intervals and breakdowns group units by", _SHA256)]
    encoder: Annotated[str, Field("digest of all that decides a feature of an image", _SHA256)]
    in_domain: Annotated[
        bool, Field("whether the dataset is the model's training distribution, or overlaps its training data")
    ]
    overlap_units: Annotated[int | None, overlap("image or case")] = None
    overlap_images: Annotated[int | None, overlap("image")] = None
    overlap_cases: Annotated[int | None, overlap("case")] = None
    generated: Annotated[bool, Field("whether the images are generated, not real")]
    split: Annotated[str, Field("name of the scored split")]
    role: Annotated[str, Field("role of the scored split")]
    basis: Annotated[str, Field("where the protocol comes from: published, inferred or ours")]
    ties: Annotated[int, Field("units with more than one class at the highest score", _UNITS)]
    cut_prompts: Annotated[int | None, Field("distinct prompts too long for the text tower", "prompts")]
    repeated: Annotated[int, Field("scored units with the same image as an earlier one", _UNITS)]
    apart: Annotated[int, Field("units that are predicted and reported, but not scored", _UNITS)]
    without_mpp: Annotated[int, Field("tiled rows whose microns per pixel are unknown", "rows")]
    coverage: Annotated[
        float | None,
        Field("mean share of an image's tissue that was seen; null: blank images", _FRACTION, figure=True),
    ]
    field_um: Annotated[float | None, Field("median side of a crop; null where unknown", "microns")]
    squashed: Annotated[int, Field("images of which one crop spans over 4 training fields", "images")]
    seen_note: Annotated[str, Field("what limits the tissue that was seen, or its scale; empty: nothing")]
    protocol_version: Annotated[int, Field("version of the protocol on the dataset's card")]
    cell: Annotated[str, Field("identity: the digest of all that decides predictions and figures", _SHA256)]
    blend: Annotated[str | None, Field("the sweep of alpha that the model is a point of")] = None
    alpha: Annotated[float | None, Field("the model's weight in that blend", _FRACTION)] = None
    classes: Annotated[list[str], Field("the protocol's classes, in their order", _JSON)]
    confusion: Annotated[list[list[int]], Field("rows of true classes, columns of predicted ones", _JSON)]
    per_class: Annotated[dict[str, ClassFigures], Field("figures of each class", _JSON)]
    breakdown: Annotated[
        dict[str, dict[str, dict[str, int | float]]],
        Field("column -> value -> figures of the units that have this value", _JSON),
    ]
    prompt_pool: Annotated[
        int | None, Field("sentences of the class that has fewest; null without prompts", "sentences")
    ] = None
    prompt_f1_median: Annotated[float | None, _of_prompt_draws("median")] = None
    prompt_f1_lo: Annotated[float | None, _of_prompt_draws("5 % quantile")] = None
    prompt_f1_hi: Annotated[float | None, _of_prompt_draws("95 % quantile")] = None
    prompt_pools: Annotated[
        dict[str, PoolFigures], Field("macro F1 under further pools of prompts, by pool", _JSON)
    ] = {}
    prompt_order: Annotated[
        dict[str, float],
        Field("share of the prompt draws that keep the order of macro F1 with each other model", _JSON),
    ] = {}
    prompt_order_least: Annotated[
        float | None, Field("the smallest of these shares", _FRACTION, figure=True)
    ] = None
    order_depends_on_prompts: Annotated[
        bool, Field(f"whether one of these shares is below {100 * STABLE:g} %: the order depends on prompts")
    ] = False

    calibration: Annotated[
        Calibrated | None,
        Field("temperature, Brier score, log likelihood, debiased error, slope, risk", _JSON),
    ] = None
    no_calibration: Annotated[
        str | None, Field("why there is no calibration; null where there is, or was not asked for")
    ] = None
    seeds_of: Annotated[
        str | None, Field("the row of all trainings, or draws of a probe, that differ only in their seed")
    ] = None
    over_seeds: Annotated[
        dict[str, OverSeeds],
        Field(
            "figure -> its mean and interval over these trainings; its difference is from one training, the "
            "reference, whose own seed variance is not in it",
            _JSON,
        ),
    ] = {}
    reference: Annotated[str | None, Field("the model that differences are from")] = None
    margin: Annotated[float | None, Field("largest loss that still counts as none (non-inferiority)")] = None
    compared: Annotated[
        dict[str, Compared], Field("figure -> how it compares with those of the other models", _JSON)
    ] = {}

    @property
    def is_baseline(self) -> bool:
        return self.model.startswith(PREFIX)

    @property
    def scored_as(self) -> str:
        """The dataset by a name that tells protocols and generated twins apart: `bci-generated.paper`.

        A generated twin is called NAME-generated, so that its scores are not mistaken for those of the real
        dataset, and a split for selection NAME-select.
        """
        named = origin_of(self.dataset, generated=self.generated)
        named += "-select" if self.role == "select" else ""
        return named if self.protocol == DEFAULT_PROTOCOL else f"{named}.{self.protocol}"

    @property
    def is_probe(self) -> bool:
        """Whether labels were fitted on the model's embeddings, so that the figures are not zero-shot."""
        return self.model.startswith(PROBE_PREFIX)

    @property
    def is_few_shot(self) -> bool:
        """Whether it is a draw of a probe on a few labels per class, or the mean of such draws."""
        return self.is_probe and self.model.partition(" of ")[0].endswith("-shot")

    @property
    def empty_classes(self) -> list[str]:
        """Classes without a unit in the split; each lowers the largest possible macro F1 by its share."""
        return [name for name, figures in self.per_class.items() if not figures.support]

    @property
    def size(self) -> str:
        """How many units and clusters the figures rest on, such as `n = 977, 51 cases`."""
        plural = "" if self.clusters == 1 else "s"
        return f"n = {self.n:,}, {self.clusters:,} {self.cluster_kind}{plural}"

    @property
    def overlap_note(self) -> str | None:
        """Why the figures are not zero-shot, where units of the row were trained on; None elsewhere."""
        if not self.overlap_units:
            return None
        cases = "cases unknown" if self.overlap_cases is None else f"{self.overlap_cases} by case"
        parts = f"{self.overlap_images} by image, {cases}"
        return f"not zero-shot: {self.overlap_units} of {self.n} units trained on ({parts})"

    @property
    def repeated_note(self) -> str | None:
        """How many of the units repeat a picture; None where none does."""
        if not self.repeated:
            return None
        return f"{self.repeated} of {self.n} units repeat the picture of another unit"

    @property
    def cut_note(self) -> str | None:
        """How many prompts the model read only in part; None where it read all of them."""
        if not self.cut_prompts:
            return None
        return f"{self.cut_prompts} of its prompts cut to fit its text tower"

    def interval(self, figure: str) -> tuple[float, float] | None:
        """The limits of a figure's interval, where the benchmark computed one."""
        low, high = getattr(self, f"{figure}_lo", None), getattr(self, f"{figure}_hi", None)
        return None if low is None or high is None else (low, high)

    def published(self, figure: str) -> float | None:
        """The paper's figure for this cell; None beside generated images, or where it has none."""
        if self.generated:
            return None
        return {"accuracy": self.published_accuracy, "macro_f1": self.published_f1}.get(figure)


class CellFailure(Config):
    """A grid cell that could not be scored, with the reason; `trace` is a traceback for developers."""

    model: str
    dataset: str
    protocol: str
    reason: str
    trace: str = ""


def fields() -> dict[str, Field]:
    """The record's fields by name, in the order of the tables' columns.

    A metric is before the limits of its interval; one without limits follows the last column.
    """
    described = {
        name: next((m for m in info.metadata if isinstance(m, Field)), None)
        for name, info in CellResult.model_fields.items()
    }
    columns = [name for name, field in described.items() if field is not None]
    for name in (name for name, field in described.items() if field is None):
        limits = f"{name}_lo"
        columns.insert(columns.index(limits) if limits in columns else len(columns), name)
    return {name: described[name] or _field_of(METRICS[name]) for name in columns}


def _field_of(metric: Metric) -> Field:
    return Field(metric.description, metric.unit, figure=True, metric=metric)


def metric_fields() -> dict[str, Metric]:
    """The metrics of the record by field, in order."""
    return {name: field.metric for name, field in fields().items() if field.metric is not None}


def intervals(predictions: Predictions, clusters: Clusters) -> dict[str, float]:
    """The limits of the interval of every metric that has fields for them, by these fields' names."""
    found: dict[str, float] = {}
    numbers = clusters.numbers
    known = jackknife(predictions, numbers)
    for name, metric in metric_fields().items():
        value, replicates = known[name]
        if value is None or f"{name}_lo" not in CellResult.model_fields:
            continue
        if not metric.has_interval(predictions, numbers):
            continue
        effective = metric.effective(predictions, numbers)
        limits = interval(value, replicates, bounds=metric.bounds, effective=effective)
        if limits is not None:
            found |= {f"{name}_lo": limits[0], f"{name}_hi": limits[1]}
            if f"{name}_df" in CellResult.model_fields:
                found |= {f"{name}_df": degrees_of(effective)}
                found |= {f"{name}_se": float(standard_error(replicates))}
    return found


def figures(cell: CellResult) -> dict[str, float]:
    """Every figure of the cell that is known, by its field's name."""
    values = ((name, getattr(cell, name)) for name, field in fields().items() if field.figure)
    found = {name: float(value) for name, value in values if value is not None}
    if cell.calibration is not None:
        for name, figure in cell.calibration.figures.items():
            found |= {column: value for column, value in figure.columns(name).items() if value is not None}
    return found


def parse(tree: Mapping[str, Any], *, where: str) -> CellResult:
    """`tree` as a record. Raises ConfigError, with the field as `key`, where it is not one."""
    try:
        return CellResult.model_validate(tree)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        raise ConfigError(f"{key}: {first['msg']}", where=where, key=key, fix=_FIX) from None


def to_csv(cells: Iterable[CellResult]) -> str:
    """A header and one line per grid cell; null is empty, lists and mappings are JSON."""
    return _csv(_flat(cells))


def to_tables(cells: Iterable[CellResult]) -> tuple[str, pa.Table]:
    """`to_csv`, and the same as one typed column per field; lists and mappings are JSON text."""
    rows = _flat(cells)
    return _csv(rows), _table(rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(fields()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {name: pa.array([row[name] for row in rows], _arrow_type(name)) for name in fields()}
    return pa.table(columns)


def read_results(path: Path) -> list[CellResult]:
    """The records of a leaderboard.csv or leaderboard.parquet.

    Raises ConfigError with the file as `where`: where its digest in sha256.json is another one, and, with the
    column as `key`, where one is unknown or missing or holds a value of another type; and StorageError, as
    `answers`.
    """
    with answers(str(path)):
        _check_digest(path)
        rows = list(_read_parquet(path) if path.suffix == ".parquet" else _read_csv(path))
    return [parse(row, where=f"{path}, row {i}") for i, row in enumerate(_nested(rows), start=1)]


def _check_digest(path: Path) -> None:
    """Raises ConfigError for a file that was changed since; one without sha256.json beside it passes."""
    try:
        known = json.loads(path.with_name(DIGESTS).read_text(encoding="utf-8")).get(path.name)
    except FileNotFoundError:
        return
    except (ValueError, AttributeError) as error:
        what = f"{DIGESTS} cannot be read: {first_line(error)}"
        raise ConfigError(what, where=path.with_name(DIGESTS), key=DIGESTS, fix=_FIX) from None
    if known is not None and hashlib.sha256(path.read_bytes()).hexdigest() != known:
        raise ConfigError("this leaderboard is not what was written", where=path, key=DIGESTS, fix=_FIX)


def _flat(cells: Iterable[CellResult]) -> list[dict[str, Any]]:
    """The values of each record by column."""
    known = fields()
    return [
        {name: _to_json(tree[name]) if field.unit == _JSON else tree[name] for name, field in known.items()}
        for tree in (cell.model_dump(mode="json") for cell in cells)
    ]


def _nested(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The inverse of `_flat`; text that is not JSON is left to the validation."""
    known = fields()
    for row in rows:
        yield {n: _from_json(row[n]) if field.unit == _JSON else row[n] for n, field in known.items()}


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _from_json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return text


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            head = next(reader, [])
            _check_columns(head, path)
            for number, line in enumerate(reader, start=1):
                if len(line) != len(head):
                    said = f"this line has {len(line)} values for {len(head)} columns"
                    raise ConfigError(said, where=f"{path}, row {number}", key=head[-1], fix=_FIX)
                yield {
                    name: None if text == "" and _is_optional(name) else text
                    for name, text in zip(head, line, strict=True)
                }
    except (csv.Error, UnicodeDecodeError) as error:
        said = f"this is not a leaderboard: {first_line(error)}"
        raise ConfigError(said, where=path, fix=_FIX) from None


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    try:
        table = read_parquet(data)
    except (pa.ArrowException, OSError) as error:
        said = f"this is not a leaderboard: {first_line(error)}"
        raise ConfigError(said, where=path, fix=_FIX) from None
    _check_columns(table.column_names, path)
    return table.to_pylist()


def _check_columns(found: Sequence[str], path: Path) -> None:
    """Raises ConfigError for the first column that the record does not have, or that the file lacks."""
    known = list(fields())
    twice = [name for name in found if found.count(name) > 1]
    unknown = [name for name in found if name not in known]
    missing = [name for name in known if name not in found]
    if twice or unknown:
        name = (twice or unknown)[0]
        what = f"the column '{name}' is there twice" if twice else f"unknown column '{name}'"
        raise ConfigError(what, where=path, key=name, fix=_FIX if twice else did_you_mean(name, known))
    if missing:
        raise ConfigError(f"the column '{missing[0]}' is missing", where=path, key=missing[0], fix=_FIX)


def _is_optional(name: str) -> bool:
    return type(None) in typing.get_args(CellResult.model_fields[name].annotation)


def _arrow_type(name: str) -> pa.DataType:
    """The column's type; JSON is text."""
    annotation = CellResult.model_fields[name].annotation
    if isinstance(annotation, types.UnionType):
        (annotation,) = (kind for kind in typing.get_args(annotation) if kind is not type(None))
    return {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}.get(annotation, pa.string())  # type: ignore[arg-type]
