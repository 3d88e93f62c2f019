"""Sweeps over training configurations: Ray Tune runs the trials, Optuna chooses and keeps them."""

from his2lip.tuning.config import SweepConfig
from his2lip.tuning.study import TrialRow
from his2lip.tuning.sweep import SweepResult, run_sweep

__all__ = ["SweepConfig", "SweepResult", "TrialRow", "run_sweep"]
