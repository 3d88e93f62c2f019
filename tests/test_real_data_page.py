"""The figures of docs/real_data.md are those of the committed result."""

from __future__ import annotations

import json
import re

import pytest

from his2lip import resources

PAGE = (resources.root() / "docs/real_data.md").read_text(encoding="utf-8")
RESULT = json.loads((resources.root() / "benchmarks/results/real_data.json").read_text(encoding="utf-8"))
ROWS = {
    "untrained `tiny`": "untrained",
    "the demo's model": "demo",
    "**`real_transfer`, 5 seeds**": "real-transfer",
    "chance": "baseline:chance",
    "stained area": "baseline:stained-area",
    "*fitted on labels of other images:* mean colour": "baseline:mean-colour",
    "logistic probe of untrained `tiny`": "probe:logistic of untrained",
    "logistic probe of the demo's model": "probe:logistic of demo",
    "logistic probe of `real_transfer`, 5 seeds": "probe:logistic of real-transfer",
    "k-NN probe of `real_transfer`, 5 seeds": "probe:knn of real-transfer",
}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def figure(model: str, protocol: str) -> str:
    """A cell of the page's table, from the result."""
    for found in RESULT["over_seeds"]:
        if (found["model"], found["dataset"], found["protocol"]) == (model, "bcdata", protocol):
            mean, spread = percent(found["mean"]), percent(found["deviation"])
            return f"{mean} ± {spread} ({percent(found['lo'])} to {percent(found['hi'])})"
    for row in RESULT["rows"]:
        if (row["model"], row["dataset"], row["protocol"]) == (model, "bcdata", protocol):
            limits = f"{percent(row['macro_f1_lo'])} to {percent(row['macro_f1_hi'])}"
            return f"{percent(row['macro_f1'])} ({limits})"
    return "–"


def table() -> dict[str, list[str]]:
    """First cell -> the other cells, of the table of results."""
    (text,) = re.findall(r"\| row \| bcdata.*?\n\n", PAGE, flags=re.DOTALL)
    lines = [line.strip("| ").split(" | ") for line in text.strip().splitlines()[2:]]
    return {name: [cell.strip("*") for cell in cells] for name, *cells in lines}


def test_the_table_has_all_of_its_rows() -> None:
    assert [*table()] == [*ROWS]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_figures_of_the_result(name: str) -> None:
    assert table()[name] == [figure(ROWS[name], protocol) for protocol in ("default", "ki67")]


@pytest.mark.parametrize("protocol", ["default", "ki67"])
def test_the_difference_from_the_demos_model_is_that_of_the_result(protocol: str) -> None:
    (found,) = (
        row
        for row in RESULT["over_seeds"]
        if (row["model"], row["dataset"], row["protocol"]) == ("real-transfer", "bcdata", protocol)
    )
    gain, low, high = (percent(found[f"difference{end}"]) for end in ("", "_lo", "_hi"))
    assert re.search(rf"by {gain}( points)? \({low} to {high}\)", PAGE)
