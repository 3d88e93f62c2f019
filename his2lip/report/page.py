"""The leaderboard page: its sections in their order, in one HTML file that needs no network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

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
from his2lip.resources import code_version
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


def writer() -> str:
    """What a page says of the code that wrote it: the version, and a digest of the templates."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).with_name("templates").rglob("*.*")):
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"his2lip {code_version()}.{whole.hexdigest()[:6]}"


def writer_of(page: str) -> str | None:
    """The `writer` of the code that wrote a page; None where the page does not say it."""
    found = re.search(r'<meta name="generator" content="(his2lip [\w.+]+)">', page)
    return found and found[1]


def sections(inputs: Inputs) -> list[Section]:
    """The sections that the board has something to show in."""
    return [section for fill in SECTIONS if (section := fill(inputs)) is not None]


def html_page(inputs: Inputs, shown: Sequence[Section]) -> str:
    """The page, with a filter by dataset, protocol and model where there are several."""
    board, columns = inputs.board, inputs.columns
    return render(
        "report/leaderboard.html",
        writer=writer(),
        sections=shown,
        warning=notes.GENERATED if inputs.generated else "",
        datasets=columns.datasets,
        protocols=columns.protocols,
        models=board.models,
    )
