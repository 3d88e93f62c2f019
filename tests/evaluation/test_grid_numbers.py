"""What `auto` means for the CPUs of a benchmark's tasks."""

from __future__ import annotations

import pytest

from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_resources import task_cpus

LAPTOP = {"CPU": 4.0}
LARGE = {"CPU": 64.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "models", "gpus", "cpus"),
    [
        ([LAPTOP], 1, 0, 4),
        ([LAPTOP], 2, 0, 2),
        ([LAPTOP], 3, 0, 1),  # a helper takes the fourth core
        ([LAPTOP], 9, 0, 1),
        ([LARGE], 1, 0, 8),  # helpers take the others
        ([{"CPU": 0.0}, LAPTOP, LAPTOP], 1, 0, 4),  # a task runs on one machine
        ([GPU_NODE], 1, 1, 4),
        ([GPU_NODE], 8, 0.5, 2),
        ([GPU_NODE, LARGE], 2, 1, 4),
        ([{"CPU": 0.0}], 1, 0, 1),  # a cluster that has to grow
    ],
)
def test_the_tasks_of_all_models_have_the_cores_of_the_cluster(
    nodes: list[dict[str, float]], models: int, gpus: float, cpus: float
) -> None:
    assert task_cpus(nodes, models, gpus=gpus) == cpus


def test_a_batch_is_larger_on_a_gpu_unless_a_number_is_given() -> None:
    tree = {"models": ["tiny"], "datasets": ["mihic"]}
    assert BenchmarkConfig.model_validate(tree | {"gpus": 0}).task_batch == 64
    assert BenchmarkConfig.model_validate(tree | {"gpus": 1}).task_batch == 256
    assert BenchmarkConfig.model_validate(tree | {"gpus": 1, "batch_size": 16}).task_batch == 16
