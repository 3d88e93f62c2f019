from .config import SweepConfig as SweepConfig
from .objective import training_objective as training_objective
from .plots import importances as importances
from .plots import save_plots as save_plots
from .study import DONE as DONE
from .study import TrialRow as TrialRow
from .sweep import SweepResult as SweepResult
from .sweep import run_sweep as run_sweep
