"""How Ray Tune and Optuna are set for the time of a sweep: quiet, and writing nothing that is not read."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a training configuration mean the driver's folder
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no JSON, CSV and TensorBoard files: the study holds it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, as everywhere; the study can go on
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is not used for going on
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the driver tells of them
}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna's own log lines off the terminal."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def tune_settings() -> Iterator[None]:
    """Tune's environment as above, and its lines about its own resuming off the terminal."""
    before = {key: os.environ.get(key) for key in _SETTINGS}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_SETTINGS)
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # A trial whose process died makes its first reports again.
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            yield
    finally:
        logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
