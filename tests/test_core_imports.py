"""The core imports without ray, mlflow and optuna: loss, models, evaluation's sums, the training loop."""

from __future__ import annotations

import json
import subprocess
import sys

CORE = [
    "his2lip.data.stream.batch",
    "his2lip.data.stream.order",
    "his2lip.evaluation.comparison",
    "his2lip.evaluation.metrics",
    "his2lip.evaluation.statistics",
    "his2lip.evaluation.zero_shot",
    "his2lip.loss",
    "his2lip.models.load",
    "his2lip.training.loop",
]

_PROGRAM = """
import importlib, json, sys
for name in ("ray", "mlflow", "optuna"):
    sys.modules[name] = None  # an import of it now raises ImportError, as where it is not installed
failed = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        failed[module] = str(error)
import torch
from his2lip.loss import LossWeights, WISELoss
labels = torch.tensor([0]), torch.tensor([-1])
loss = WISELoss(weights=LossWeights())(torch.ones(1, 2), torch.ones(1, 2), *labels, torch.tensor(0.0))
print(json.dumps([failed, loss.total.item()]))
"""


def test_core_imports_and_the_loss_works_where_ray_mlflow_and_optuna_are_absent() -> None:
    command = [sys.executable, "-c", _PROGRAM, *CORE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [{}, 0.0]


_LIGHT = """
import sys
from his2lip.models import BACKBONES, read_meta
assert BACKBONES and read_meta
print(*(name for name in ("torch", "open_clip", "transformers") if name in sys.modules))
"""


def test_listing_models_and_reading_provenance_import_neither_torch_nor_open_clip() -> None:
    done = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_process_that_controls_a_training_does_not_import_open_clip() -> None:
    """Ray's controller unpickles names of this module; the import would delay the start of the workers."""
    program = "import sys, his2lip.training.ray_train; print('open_clip' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
