"""MLflow, for drivers only: runs that go on, checkpoints as logged models, and their scores on datasets."""

from his2lip.tracking.run import BATCH, PATH, RUN_ID, WEIGHTS, Run, model_name
from his2lip.tracking.store import Tracker

__all__ = ["BATCH", "PATH", "RUN_ID", "WEIGHTS", "Run", "Tracker", "model_name"]
