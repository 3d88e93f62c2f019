"""Pictures of a sweep: which parameters matter, which values do well, how the best value came about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.errors import RunError
from his2lip.tuning.study import to_row

if TYPE_CHECKING:
    from optuna import Study
    from plotly.graph_objects import Figure

PLOTS = "plots"  # the sweep's folder of pictures


def save_plots(study: Study, directory: Path, *, metric: str = "objective") -> list[Path]:
    """Writes each plot as a page that needs no network, and as plotly's JSON; the pages' paths.

    Trials without a finite value of their own are left out: a stated worst value would bend every scale.
    Raises RunError where fewer than two trials are left.
    """
    usable = [t for t in study.get_trials() if to_row(t).state in ("finished", "stopped")]
    if len(usable) < 2:
        raise RunError(
            f"plots need two finished trials, and this sweep has {len(usable)}",
            where=directory,
            mend="the same command goes on with it",
        )
    folder = directory / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for name, figure in _figures(_only(study, usable), metric).items():
        (folder / f"{name}.json").write_text(figure.to_json(), encoding="utf-8")
        page = folder / f"{name}.html"
        # One copy of plotly.js beside the pages serves all of them.
        figure.write_html(page, include_plotlyjs="directory", full_html=True)
        pages.append(page)
    return pages


def importances(study: Study) -> dict[str, float]:
    """Each parameter's share of what decides the value (fANOVA, Hutter et al. 2014), largest first.

    Empty where fewer than two trials finished, or where all came to one value.
    """
    from optuna.importance import get_param_importances

    usable = [t for t in study.get_trials() if to_row(t).state in ("finished", "stopped")]
    if len(usable) < 2 or len({t.value for t in usable}) < 2:
        return {}
    return get_param_importances(_only(study, usable), evaluator=_evaluator())


def _figures(study: Study, metric: str) -> dict[str, Figure]:
    from optuna import visualization as draw

    named: dict[str, Any] = {"target_name": metric}
    figures = {
        "optimization_history": draw.plot_optimization_history(study, **named),
        "parallel_coordinates": draw.plot_parallel_coordinate(study, **named),
    }
    if importances(study):
        figures["parameter_importance"] = draw.plot_param_importances(study, evaluator=_evaluator(), **named)
    return figures


def _only(study: Study, trials: list[Any]) -> Study:
    """The same study with these trials alone, in memory."""
    import optuna

    copy = optuna.create_study(study_name=study.study_name, direction=study.direction)
    copy.add_trials(trials)
    return copy


def _evaluator() -> Any:
    from optuna.importance import FanovaImportanceEvaluator

    return FanovaImportanceEvaluator(seed=0)
