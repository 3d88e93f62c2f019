"""The pictures of a sweep: one page without any network, and importances that find what matters."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from page_tags import fetched, tags

from his2lip.errors import RunError
from his2lip.tuning.plots import importances, save_plots


def study_of(values: dict[tuple[float, float], float | None]) -> optuna.Study:
    """A study with trials of (x, y) -> value; None: the trial failed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="a <b>", direction="maximize")
    span = optuna.distributions.FloatDistribution(0.0, 1.0)
    for (x, y), value in values.items():
        attrs = {"failed": "nan"} if value is None else {}
        trial = optuna.trial.create_trial(
            params={"x": x, "y": y},
            distributions={"x": span, "y": span},
            value=-1e6 if value is None else value,
            user_attrs=attrs,
        )
        study.add_trial(trial)
    return study


GRID = {(x / 4, y / 4): 10.0 * x + 0.01 * y for x in range(5) for y in range(5)}


def test_plots_are_one_page_that_needs_no_network_and_a_json_file(tmp_path: Path) -> None:
    page, *figures = save_plots(study_of(GRID), tmp_path, metrics=["macro F1"])
    text = page.read_text(encoding="utf-8")
    assert "<title>a &lt;b&gt;</title>" in text
    assert not fetched(text)
    assert sum("plotly-graph-div" in attributes.get("class", "") for _, attributes in tags(text)) == 3
    names = {path.stem for path in figures}
    assert names == {"parameter_importance", "parallel_coordinates", "optimization_history"}
    assert all(json.loads(path.read_text(encoding="utf-8"))["data"] for path in figures)


def test_importance_is_highest_for_the_parameter_that_matters() -> None:
    found = importances(study_of(GRID))
    assert list(found) == ["x", "y"]
    assert found["x"] > 0.95
    assert type(found["x"]) is float


def test_failed_trials_are_not_in_the_plots(tmp_path: Path) -> None:
    _, *figures = save_plots(study_of({**GRID, (0.1, 0.1): None}), tmp_path)
    assert all("1000000" not in path.read_text(encoding="utf-8") for path in figures)


def test_one_finished_trial_is_too_few_for_plots(tmp_path: Path) -> None:
    with pytest.raises(RunError) as refused:
        save_plots(study_of({(0.0, 0.0): 1.0, (0.5, 0.5): None}), tmp_path)
    assert (refused.value.key, refused.value.where) == ("trials", tmp_path)


def test_trials_of_one_value_have_plots_but_no_importance(tmp_path: Path) -> None:
    same = study_of({(0.0, 0.0): 1.0, (0.5, 0.5): 1.0})
    assert importances(same) == {}
    assert len(save_plots(same, tmp_path)) == 3
