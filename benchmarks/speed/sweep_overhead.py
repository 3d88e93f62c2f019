"""The overhead of Ray Tune: a sweep of 20 trivial trials, 2 in parallel, against a plain Optuna loop.

python benchmarks/speed/sweep_overhead.py [--quick] [--out benchmarks/results/sweep_overhead.json]

Both programs store the study in SQLite and make three reports per trial. Ray is started before. Starting the
two actors, choosing and storing the trials, and ending the sweep count. Limit: 1.5 s per trial.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _pairs import Program, arguments, compare, write

from his2lip.runtime import start_ray
from his2lip.tuning.config import SweepConfig
from his2lip.tuning.sweep import run_sweep

LIMIT_S = 1.5
REPORTS = 3
KEY = "x"


def objective(params: Mapping[str, Any], report: Callable[[Mapping[str, float]], bool | None]) -> None:
    """Does no work, so all of the time is overhead."""
    for step in range(REPORTS):
        report({"value": -((params[KEY] - 1.0) ** 2) + 0.01 * step})


def sweep(directory: Path, trials: int) -> None:
    """The trials through Ray Tune, two in parallel."""
    config = SweepConfig.model_validate(
        {
            "name": "overhead",
            "train": {},
            "space": {KEY: {"kind": "uniform", "low": 0.0, "high": 2.0}},
            "trials": trials,
            "max_concurrent": 2,
            "scheduler": {"kind": "none"},  # all trials make all reports
            "metric": "value",
            "storage": str(directory),
        }
    )
    result = run_sweep(config, objective)
    assert sum(row.state == "finished" for row in result.trials) == trials


def loop(directory: Path, trials: int) -> None:
    """The same trials in this process, one after another."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directory.mkdir()
    study = optuna.create_study(storage=f"sqlite:///{directory}/study.db", direction="maximize")

    def trial(each: optuna.Trial) -> float:
        values: list[float] = []

        def report(metrics: Mapping[str, float]) -> None:
            values.append(metrics["value"])
            each.report(values[-1], len(values))

        objective({KEY: each.suggest_float(KEY, 0.0, 2.0)}, report)
        return values[-1]

    study.optimize(trial, n_trials=trials)


def main() -> None:
    """Measures both and writes how many seconds longer a trial of the sweep takes than one of the loop."""
    args = arguments("sweep_overhead", "overhead of Ray Tune per trial, against a plain Optuna loop")
    trials, repeats = (6, 1) if args.quick else (20, max(args.repeats, 5))
    start_ray(num_cpus=2)
    with tempfile.TemporaryDirectory() as folder:
        fresh = (Path(folder) / str(i) for i in itertools.count())
        pair = compare(
            Program("Optuna loop", lambda: loop(next(fresh), trials)),
            Program("Ray Tune sweep", lambda: sweep(next(fresh), trials)),
            repeats=repeats,
        )
    medians = {name: side["median_s"] for name, side in pair["programs"].items()}
    over = (medians["Ray Tune sweep"] - medians["Optuna loop"]) / trials
    result = {"trials": trials, "overhead_s_per_trial": over, "limit_s": LIMIT_S, **pair}
    write(args, result, limits={"overhead_s_per_trial": over <= LIMIT_S})


if __name__ == "__main__":
    main()
