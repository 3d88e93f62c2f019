"""The section of the paper's Table 2: every published pair of figures, impossible ones marked."""

from __future__ import annotations

from his2lip.report.board import published_rows
from his2lip.report.comparability import NOT_COMPARABLE
from his2lip.report.section import Inputs, Section


def fill(inputs: Inputs) -> Section | None:
    """The published table; None where the project has none."""
    published = published_rows()
    if not published:
        return None
    datasets = list(dict.fromkeys(row.dataset for row in published))
    pairs = {(row.model, row.dataset): row for row in published}
    models = dict.fromkeys(row.model for row in published)
    values = {
        "datasets": datasets,
        "rows": [(model, [pairs.get((model, dataset)) for dataset in datasets]) for model in models],
        "not_comparable": NOT_COMPARABLE,
    }
    return Section("paper", "Against the paper", values)
