"""Settings of Ray Tune and Optuna during a sweep: no output of their own, and no files that are not read."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths start at the driver's folder
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no JSON, CSV and TensorBoard files: the study has all of it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command; the study can be resumed
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is not used to resume
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the driver prints them
}


@contextmanager
def silence_optuna() -> Iterator[None]:
    """Hides Optuna's log lines."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def tune_settings() -> Iterator[None]:
    """Sets Tune's environment as above, and hides its log lines about its own resuming."""
    before = {key: os.environ.get(key) for key in _SETTINGS}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_SETTINGS)
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # A trial whose process died repeats its first reports.
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            yield
    finally:
        logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
