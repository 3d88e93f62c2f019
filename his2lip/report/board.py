"""The leaderboard of a benchmark: its grid cells by model and column, and one number for each model."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from his2lip.data.cards import list_cards, load_card
from his2lip.evaluation import (
    DEFAULT_PROTOCOL,
    PAPER_PROTOCOL,
    PREFIX,
    PROBE_PREFIX,
    CellResult,
    Part,
    comparison_name,
    mean_interval,
    published_figures,
    read_results,
)
from his2lip.report.comparability import is_possible

_OF_DRAWS = 2 * 1.96  # standard errors between limits that are quantiles of draws, such as those of chance
_NORMAL = 1e6  # degrees of freedom of these
ONE_NUMBER = "chance_corrected"  # the figure whose mean over datasets ranks the models


def heading(cell: CellResult) -> str:
    """Name of a grid cell's column, such as `bci (paper, generated)`."""
    marks = qualifiers(cell)
    return f"{cell.dataset} ({marks})" if marks else cell.dataset


def qualifiers(cell: CellResult) -> str:
    """What the name of a grid cell's column has beside the dataset; the protocol `default` is left out.

    A version of the protocol that is older than the card's is a column of its own, and is marked.
    """
    marks = [cell.protocol] if cell.protocol != DEFAULT_PROTOCOL else []
    marks += ["select"] if cell.role == "select" else []
    marks += ["generated"] if cell.generated else []
    newest = _version(cell.dataset, cell.protocol)
    marks += [f"version {cell.protocol_version} of {newest}"] if cell.protocol_version < newest else []
    return ", ".join(marks)


def outdated(cell: CellResult) -> str | None:
    """What has changed since the protocol version of a grid cell; None where its version is the card's."""
    if cell.protocol_version >= _version(cell.dataset, cell.protocol):
        return None
    changes = load_card(cell.dataset).protocols[cell.protocol].changelog
    return " ".join(text for version, text in sorted(changes.items()) if version > cell.protocol_version)


@functools.cache
def _version(dataset: str, protocol: str) -> int:
    """The version of a protocol on the project's card of that name; 0 where there is no such card."""
    known = load_card(dataset).protocols if dataset in list_cards() else {}
    return known[protocol].version if protocol in known else 0


@dataclass(frozen=True)
class Board:
    """All grid cells of one benchmark: one row per model, and one column per `heading`."""

    cells: Sequence[CellResult]

    @cached_property
    def columns(self) -> list[str]:
        """The headings of the columns, in the order of the grid cells."""
        return list(dict.fromkeys(heading(cell) for cell in self.cells))

    @cached_property
    def models(self) -> list[str]:
        """The models, those with the highest zero-shot mean first, then the baselines in the same order.

        Probes follow the models. Few-shot probes have a table of their own (report/probes.py).
        """
        baseline = {cell.model: cell.is_baseline for cell in self.cells if not cell.is_few_shot}
        return sorted(baseline, key=lambda name: (baseline[name], -_or_worst(self.mean(name))))

    @property
    def generated(self) -> bool:
        """Whether any column is of a generated twin, whose figures say nothing about the real dataset."""
        return any(cell.generated for cell in self.cells)

    def cell(self, model: str, column: str) -> CellResult | None:
        """The grid cell of a model and a column; None where the model was not scored there."""
        return self._places.get((model, column))

    @cached_property
    def _places(self) -> dict[tuple[str, str], CellResult]:
        """(model, column) -> its grid cell; the first of several."""
        return {(cell.model, heading(cell)): cell for cell in reversed(self.cells)}

    @cached_property
    def counted(self) -> list[str]:
        """One column of each dataset, which counts in means: that of the protocol `default` where a model was
        scored by it, else the dataset's first."""
        first: dict[tuple[str, bool], CellResult] = {}
        for cell in self.cells:
            known = first.setdefault((cell.dataset, cell.generated), cell)
            if cell.protocol == DEFAULT_PROTOCOL != known.protocol:
                first[cell.dataset, cell.generated] = cell
        return [heading(cell) for cell in first.values()]

    def in_domain(self) -> list[str]:
        """The columns that are in-domain for at least one model."""
        seen = {heading(cell) for cell in self.cells if cell.in_domain}
        return [column for column in self.columns if column in seen]

    def zero_shot(self) -> list[str]:
        """The columns of the zero-shot mean: one per dataset (`counted`), if it is in-domain for no model.

        Columns of generated twins are only included where all columns are generated.
        """
        left_out = set(self.in_domain())
        if not all(cell.generated for cell in self.cells):
            left_out |= {heading(cell) for cell in self.cells if cell.generated}
        return [column for column in self.counted if column not in left_out]

    def mean(self, model: str, *, columns: Sequence[str] | None = None) -> float | None:
        """The mean of chance-corrected balanced accuracy over `columns`; None where one is not scored.

        It is 0 at chance and 1 if perfect for any number of classes, so datasets can be averaged. The mean of
        macro F1 would rank by the chance levels of the datasets. Probes have no mean: they are not zero-shot.

        columns  default: those of `zero_shot`
        """
        if model.startswith(PROBE_PREFIX):
            return None
        cells = [self.cell(model, column) for column in (self.zero_shot() if columns is None else columns)]
        values = [getattr(c, ONE_NUMBER) for c in cells if c is not None]
        return statistics.fmean(values) if values and len(values) == len(cells) else None

    def mean_interval(
        self, model: str, *, columns: Sequence[str] | None = None, models: int = 1
    ) -> tuple[float, float] | None:
        """The limits of the 95 % interval of `mean`; None where a figure of it has no interval.

        columns  default: those of `zero_shot`
        models   number of models whose intervals hold together
        """
        parts = []
        for cell in (
            self.cell(model, column) for column in (self.zero_shot() if columns is None else columns)
        ):
            limits = None if cell is None else cell.interval(ONE_NUMBER)
            if cell is None or limits is None or cell.is_probe:
                return None
            error, degrees = cell.chance_corrected_se, cell.chance_corrected_df
            if error is None or degrees is None:
                if not cell.is_baseline:  # of an earlier version, or a mean over trainings
                    return None
                error, degrees = (limits[1] - limits[0]) / _OF_DRAWS, _NORMAL
            parts.append(Part(getattr(cell, ONE_NUMBER), error, degrees))
        return mean_interval(parts, models=models) if parts else None

    def borda(self) -> dict[str, int]:
        """Model -> its rank by Borda count over the columns of the mean, 1 for the best.

        In each column a model gets a point for every model that it beats, and half a point for a tie (Colombo
        et al. 2022). Only models with a mean are ranked.
        """
        means = [
            model for model in dict.fromkeys(c.model for c in self.cells) if self.mean(model) is not None
        ]
        points = dict.fromkeys(means, 0.0)
        for column in self.zero_shot() if means else ():
            own = {model: getattr(self.cell(model, column), ONE_NUMBER) for model in means}
            for model, value in own.items():
                points[model] += sum((value > other) + (value == other) / 2 for other in own.values())
        return {model: 1 + sum(p > own for p in points.values()) for model, own in points.items()}

    def disagreements(self) -> list[tuple[str, str]]:
        """Pairs of models that are no baselines: the first has the higher mean and the lower Borda count."""
        ranks = {model: rank for model, rank in self.borda().items() if not model.startswith(PREFIX)}
        means = {model: _or_worst(self.mean(model)) for model in ranks}
        pairs = itertools.permutations(sorted(means, key=lambda model: -means[model]), 2)
        return [(a, b) for a, b in pairs if means[a] > means[b] and ranks[a] > ranks[b]]

    def zero_shot_share(self, model: str) -> float:
        """The share of a model's datasets that are zero-shot by all protocols, a fraction; 0 for a probe."""
        own: dict[tuple[str, bool], bool] = {}
        for cell in self.cells:
            if cell.model == model:
                key = (cell.dataset, cell.generated)
                own[key] = own.get(key, True) and not (cell.in_domain or cell.is_probe)
        return statistics.fmean(own.values())

    @property
    def reference(self) -> str | None:
        """The model that differences are from; None where there is none."""
        return next((cell.reference for cell in self.cells if cell.reference is not None), None)

    @property
    def margin(self) -> float | None:
        """Of non-inferiority, a fraction; None where the benchmark has none."""
        return next((cell.margin for cell in self.cells if cell.margin is not None), None)

    def detectable(self, column: str, figure: str) -> float | None:
        """The smallest difference that the units of a column show with a probability of 80 %."""
        found = (cell.compared.get(figure) for cell in self.cells if heading(cell) == column)
        return next((f.detectable for f in found if f is not None), None)

    def sizes(self, column: str) -> list[str]:
        """How many units and clusters the figures of a column rest on; more than one where models differ."""
        return list(dict.fromkeys(cell.size for cell in self.cells if heading(cell) == column))

    def repeated(self) -> dict[str, str]:
        """Column -> how many of its units repeat a picture; only columns with such units."""
        found = {heading(cell): cell.repeated_note for cell in self.cells}
        return {column: note for column, note in found.items() if note is not None}

    def empty_classes(self) -> dict[str, list[str]]:
        """Column -> its classes that have no unit in the scored split; only columns with such classes."""
        found = {heading(cell): cell.empty_classes for cell in self.cells}
        return {column: names for column, names in found.items() if names}


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One pair of figures in the paper's Table 2, and whether it is possible for its number of classes."""

    model: str
    dataset: str
    accuracy: float
    macro_f1: float
    is_possible: bool


def _or_worst(mean: float | None) -> float:
    """A mean, or less than any mean."""
    return -2.0 if mean is None else mean


def read_board(path: Path) -> Board:
    """The board of a leaderboard.csv or .parquet. Raises ConfigError for a file that is not one."""
    return Board(read_results(path))


def published_rows() -> list[PublishedRow]:
    """The paper's Table 2. The number of classes of a dataset is that of the card's protocol `paper`."""
    protocols = {comparison_name(name): load_card(name).protocols for name in list_cards()}
    # A card that was added to the project has none: the paper does not have its dataset.
    classes = {
        name: len(known[PAPER_PROTOCOL].classes)
        for name, known in protocols.items()
        if PAPER_PROTOCOL in known
    }
    return [
        PublishedRow(
            model=row.model,
            dataset=row.dataset,
            accuracy=row.accuracy,
            macro_f1=row.macro_f1,
            is_possible=is_possible(row.accuracy, row.macro_f1, classes[comparison_name(row.dataset)]),
        )
        for row in published_figures()
    ]
