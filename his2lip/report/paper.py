"""The benchmark against the paper: its Table 2, our figures under the protocol `paper`, and what differs.

Only differences are compared: the paper publishes neither n nor intervals, so the interval of a difference is
that of our figure. A published pair that no classifier can reach with these classes has no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from his2lip.data.cards import Card, list_cards, load_card
from his2lip.evaluation import PAPER_PROTOCOL, CellResult, PromptSet, comparison_name
from his2lip.report.board import Board, PublishedRow, published_rows
from his2lip.report.comparability import IMPOSSIBLE, NOT_COMPARABLE
from his2lip.report.csv_text import csv_text
from his2lip.report.section import Inputs, Section
from his2lip.report.table import FRACTION, Figure, Head, Row, Scale, Table, difference, limits
from his2lip.templates import percent

TITLE = "Against the paper"
_FIGURES = {"macro_f1": "Macro F1", "accuracy": "Accuracy"}
_PLURAL = {"patch": "patches", "image": "images", "slide": "slides"}
_COLUMNS = (
    *("model", "dataset", "figure", "published", "ours", "ours_lo", "ours_hi"),
    *("difference", "difference_lo", "difference_hi", "not_comparable"),
    *("n", "clusters", "cluster_kind", "no_interval", "protocol_differences"),
)


@dataclass(frozen=True)
class Pair:
    """A published pair of figures and our grid cell; None where the model was not scored so."""

    published: PublishedRow
    cell: CellResult | None

    def difference(self, figure: str) -> float | None:
        """Our figure minus the published one; None without ours, and beside an impossible published pair."""
        if self.cell is None or not self.published.is_possible:
            return None
        return float(getattr(self.cell, figure)) - float(getattr(self.published, figure))

    def interval(self, figure: str) -> tuple[float, float] | None:
        """The limits of the difference: those of our figure, moved by the published one."""
        limits = None if self.cell is None else self.cell.interval(figure)
        if limits is None or self.difference(figure) is None:
            return None
        published = float(getattr(self.published, figure))
        return limits[0] - published, limits[1] - published


def pairs(board: Board) -> list[Pair]:
    """Every published pair of figures, with ours of the protocol `paper` on real images."""
    ours = {
        (comparison_name(cell.seeds_of or cell.model), comparison_name(cell.dataset)): cell
        for cell in board.cells
        if cell.protocol == PAPER_PROTOCOL and cell.published("macro_f1") is not None
    }
    return [
        Pair(row, ours.get((comparison_name(row.model), comparison_name(row.dataset))))
        for row in published_rows()
    ]


def fill(inputs: Inputs) -> Section | None:
    """One row for each dataset of the paper, with what differs; None where the project has no table."""
    known = pairs(inputs.board)
    if not known:
        return None
    datasets = list(dict.fromkeys(pair.published.dataset for pair in known))
    differs = {name: differences_of(name, known) for name in datasets}
    has_ours = any(pair.cell is not None for pair in known)
    table = _compared if has_ours else _published
    tables = [table(inputs, figure, known, datasets) for figure in _FIGURES]
    values = {
        "tables": tables,
        "differs": differs,
        "cards": {name: _card(name).name for name in datasets},
        "has_ours": has_ours,
        "mark": IMPOSSIBLE,
        "not_comparable": NOT_COMPARABLE,
        "file": "against_paper.csv" if inputs.is_written("against_paper.csv") else "",
    }
    remarks = [f"{name}: {'; '.join(differs[name])}." for name in datasets if differs[name]]
    if any(not pair.published.is_possible for pair in known):
        remarks.append(f"{IMPOSSIBLE} {NOT_COMPARABLE}.")
    return Section("paper", TITLE, values, tables, remarks) if has_ours else Section("paper", TITLE, values)


def against_paper_csv(board: Board) -> str:
    """Each published figure with ours, the difference and what differs; empty if no model was scored."""
    known = pairs(board)
    if all(pair.cell is None for pair in known):
        return ""
    return csv_text([_line(pair, figure, known) for pair in known for figure in _FIGURES], _COLUMNS)


def differences_of(dataset: str, known: Sequence[Pair]) -> list[str]:
    """How the protocol of our figures differs from what is published, or is not known to be the same."""
    cells = [p.cell for p in known if p.published.dataset == dataset and p.cell is not None]
    return list(_differences(_card(dataset), cells)) if cells else []


def _differences(card: Card, cells: Sequence[CellResult]) -> Iterator[str]:
    protocol = card.protocols[PAPER_PROTOCOL]
    own = PromptSet.load(protocol.prompts).narrow(protocol.classes).digest
    if any(cell.prompts_sha256 == own for cell in cells):
        yield f"prompts: ours ({protocol.prompts}), not the authors'"
    elif any(cell.prompts_sha256 is not None for cell in cells):
        yield "prompts: those that the benchmark names"
    split = card.splits[protocol.split]
    yield f"split: {protocol.split}" + (", made by this project" if split.origin == "ours" else "")
    sizes = ", ".join(dict.fromkeys(f"{cell.n:,}" for cell in cells))
    counted = card.published.images
    total = f"; the paper's Table 1 counts {counted:,} {_PLURAL[card.published.unit]}" if counted else ""
    yield f"n: {sizes} {_PLURAL[protocol.unit]}{total}"
    yield f"size: {_size(card)}"
    found = "as published" if protocol.basis == "published" else "inferred"
    yield f"classes: {len(protocol.classes)}, {found}"
    yield from (text.rstrip(".") for text in (protocol.note, *card.differences) if text)


def _size(card: Card) -> str:
    """How large the images are that the model sees, and how it sees them."""
    protocol, options = card.protocols[PAPER_PROTOCOL], card.options
    if "field_px" in options:
        size = f"patches of {options['field_px']} px around annotated cells"
    elif "field_um" in options:
        size = f"patches of {options['field_um']:g} µm around annotated cells"
    elif "tile_px" in options:
        size = f"tiles of {options['tile_px']} px"
    else:
        size = "whole images" if card.published.size_px is None else f"{card.published.size_px} px"
    seen = "resized whole, as in the released code" if protocol.view == "squash" else protocol.view
    pooled = f", pooled by {protocol.unit}" if protocol.unit != "patch" else ""
    return f"{size}, {seen}{pooled}"


def _card(dataset: str) -> Card:
    """The project's card of a dataset of the paper."""
    return next(load_card(name) for name in list_cards() if comparison_name(name) == comparison_name(dataset))


def _published(inputs: Inputs, figure: str, known: Sequence[Pair], datasets: Sequence[str]) -> Table:
    """The published values of one figure, where no model was scored."""
    rows: dict[str, list[Figure]] = {dataset: [] for dataset in datasets}
    for pair in known:
        value = float(getattr(pair.published, figure))
        sign = "" if pair.published.is_possible else IMPOSSIBLE
        rows[pair.published.dataset].append(Figure(value, percent(value), marks=sign))
    heads = [Head(model) for model in dict.fromkeys(pair.published.model for pair in known)]
    title = f"{_FIGURES[figure]} in the paper, %"
    table = [Row(dataset, figures) for dataset, figures in rows.items()]
    return Table(f"paper-{figure}", title, heads, table, corner="dataset")


def _compared(inputs: Inputs, figure: str, known: Sequence[Pair], datasets: Sequence[str]) -> Table:
    """The differences of one figure: a row for each dataset, a column for each model of the paper."""
    models = dict.fromkeys(pair.published.model for pair in known)
    places = {(pair.published.model, pair.published.dataset): pair for pair in known}
    rows = [
        Row(dataset, [_figure(inputs, places[model, dataset], figure) for model in models])
        for dataset in datasets
    ]
    scale = Scale.around_zero((f for row in rows for f in row.figures), FRACTION)
    heads = [Head(model, scale=scale, chance=0.0) for model in models]
    title = f"{_FIGURES[figure]}: ours minus the paper's, points"
    return Table(f"paper-{figure}", title, heads, rows, corner="dataset")


def _figure(inputs: Inputs, pair: Pair, figure: str) -> Figure:
    found, interval = pair.difference(figure), pair.interval(figure)
    beside: tuple[str, ...] = (f"paper {percent(getattr(pair.published, figure))}",)
    if pair.cell is not None:
        beside = (*beside, f"ours {percent(getattr(pair.cell, figure))}")
    return Figure(
        found,
        "" if found is None else difference(found, FRACTION),
        limits(interval, FRACTION),
        interval,
        marks="" if pair.published.is_possible else IMPOSSIBLE,
        beside=beside,
        href=inputs.evidence(pair.cell),
    )


def _line(pair: Pair, figure: str, known: Sequence[Pair]) -> dict[str, object]:
    """One line of the CSV; fractions."""
    cell, row = pair.cell, pair.published
    line: dict[str, object] = {
        "model": row.model,
        "dataset": row.dataset,
        "figure": figure,
        "published": getattr(row, figure),
        "not_comparable": "" if row.is_possible else NOT_COMPARABLE,
    }
    if cell is None:
        return line
    ours, interval = cell.interval(figure) or (None, None), pair.interval(figure) or (None, None)
    return line | {
        "ours": getattr(cell, figure),
        "ours_lo": ours[0],
        "ours_hi": ours[1],
        "difference": pair.difference(figure),
        "difference_lo": interval[0],
        "difference_hi": interval[1],
        "n": cell.n,
        "clusters": cell.clusters,
        "cluster_kind": cell.cluster_kind,
        "no_interval": cell.no_interval,
        "protocol_differences": "; ".join(differences_of(row.dataset, known)),
    }
