"""The leaderboard page: its sections in their order, in one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence

from his2lip.report import (
    by_dataset,
    calibration,
    differences,
    evidence,
    notes,
    paper,
    plots,
    probes,
    prompt_order,
    retrieval,
    robustness,
    summary,
)
from his2lip.report.section import Fill, Inputs, Section
from his2lip.templates import render

# What fills each section, in the order of the page.
SECTIONS: tuple[Fill, ...] = (
    summary.fill,
    by_dataset.fill,
    differences.fill,
    probes.fill,
    retrieval.fill,
    robustness.fill,
    prompt_order.fill,
    calibration.fill,
    paper.fill,
    plots.fill,
    evidence.fill,
    notes.fill,
)


def sections(inputs: Inputs) -> list[Section]:
    """The sections that the board has something to show in."""
    return [section for fill in SECTIONS if (section := fill(inputs)) is not None]


def html_page(inputs: Inputs, shown: Sequence[Section]) -> str:
    """The page, with a filter by dataset, protocol and model where there are several."""
    board, columns = inputs.board, inputs.columns
    return render(
        "report/leaderboard.html",
        sections=shown,
        warning=notes.GENERATED if inputs.generated else "",
        datasets=columns.datasets,
        protocols=columns.protocols,
        models=board.models,
    )
