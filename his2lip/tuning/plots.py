"""Plots of a sweep: importance of parameters, parallel coordinates, history of the best value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from his2lip.errors import RunError
from his2lip.templates import render, trusted
from his2lip.tuning.library_settings import silence_optuna
from his2lip.tuning.study import stored_values, to_row

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

PLOTS = "plots"  # folder of the plots, in the folder of the sweep


def save_plots(study: Study, directory: Path, *, metrics: Sequence[str] = ("objective",)) -> list[Path]:
    """Writes a page with all plots, which needs no network, and each plot as JSON; returns the paths.

    With two metrics the first plot is their Pareto front, and the others are of the first metric. Trials
    without a value are left out. Raises RunError where fewer than two trials are left.
    """
    usable = _usable(study)
    if len(usable) < 2:
        raise RunError(
            f"plots need two finished trials, and this sweep has {len(usable)}",
            where=directory,
            key="trials",
            fix="the same command resumes the sweep",
        )
    folder = directory / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    figures = _figures(_only(study, usable), list(metrics))
    page = folder / "sweep.html"
    page.write_text(_page(study.study_name, figures), encoding="utf-8")
    for name, figure in figures.items():
        (folder / f"{name}.json").write_text(figure.to_json(), encoding="utf-8")
    return [page, *(folder / f"{name}.json" for name in figures)]


def importances(study: Study) -> dict[str, float]:
    """The share of each parameter in the variance of the value (fANOVA, Hutter et al. 2014), largest first.

    Of the first metric. Empty where fewer than two trials have a value, or where all have the same; without
    parameters that only some trials have.
    """
    from optuna.importance import get_param_importances

    usable = _usable(study)
    if len({stored_values(trial)[0] for trial in usable}) < 2:
        return {}
    found = get_param_importances(_only(study, usable), evaluator=_evaluator(), target=_first)
    return {key: float(share) for key, share in found.items()}


def _first(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _figures(study: Study, metrics: list[str]) -> dict[str, Figure]:
    from optuna import visualization as draw

    named: dict[str, Any] = {"target_name": metrics[0], "target": _first}
    figures = {
        "parallel_coordinates": draw.plot_parallel_coordinate(study, **named),
        "optimization_history": draw.plot_optimization_history(study, **named),
    }
    if importances(study):
        importance = draw.plot_param_importances(study, evaluator=_evaluator(), **named)
        figures = {"parameter_importance": importance, **figures}
    if len(metrics) == 2:
        figures = {"pareto_front": draw.plot_pareto_front(study, target_names=metrics), **figures}
    return figures


def _page(title: str, figures: dict[str, Figure]) -> str:
    """The figures one below the other."""
    plots = [
        trusted(figure.to_html(full_html=False, include_plotlyjs=i == 0, default_height="520px"))
        for i, figure in enumerate(figures.values())
    ]
    return render("tuning/sweep.html", title=title, plots=plots)


def _usable(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials() if to_row(trial).state in ("finished", "stopped")]


def _only(study: Study, trials: list[FrozenTrial]) -> Study:
    """A copy of the study in memory, with these trials only, each with the metrics of its best report."""
    import optuna

    with silence_optuna():
        copy = optuna.create_study(study_name=study.study_name, directions=study.directions)
    for trial in trials:
        copy.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, values=stored_values(trial)
            )
        )
    return copy


def _evaluator() -> Any:
    from optuna.importance import FanovaImportanceEvaluator

    return FanovaImportanceEvaluator(seed=0)
