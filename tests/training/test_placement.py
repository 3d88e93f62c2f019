"""What `auto` means for the threads of a run."""

from __future__ import annotations

import pytest

from his2lip.training.config import TrainConfig
from his2lip.training.placement import most_threads, with_numbers

LAPTOP = {"CPU": 4.0}
HEAD = {"CPU": 0.0, "memory": 1e9}
GPU_NODE = {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "use_gpu", "threads"),
    [
        ([LAPTOP], 1, False, 4),
        ([LAPTOP], 2, False, 2),
        ([LAPTOP], 3, False, 1),
        ([LAPTOP], 8, False, 1),  # they share the cores
        ([HEAD, LAPTOP, LAPTOP], 2, False, 4),
        ([HEAD, LAPTOP, {"CPU": 2.0}], 3, False, 2),
        ([GPU_NODE, GPU_NODE], 4, True, 8),
        ([GPU_NODE, {"CPU": 64.0}], 2, True, 8),  # the machine without a GPU takes no worker
        ([{"CPU": 64.0, "GPU": 8.0}], 1, True, 8),  # seven GPUs stay usable
        ([{"CPU": 1.0, "GPU": 2.0}], 1, True, 1),
        ([HEAD], 1, False, 1),  # a cluster that has to grow
    ],
)
def test_all_workers_find_a_machine_with_their_threads(
    nodes: list[dict[str, float]], workers: int, use_gpu: bool, threads: int
) -> None:
    assert most_threads(nodes, workers, use_gpu=use_gpu) == threads


def test_numbers_replace_auto_only_and_change_no_identity() -> None:
    auto = TrainConfig.model_validate({"data": {"shards": "s"}, "workers": {"threads": 3}})
    found = with_numbers(auto, threads=8, decode_threads=5)
    assert (found.workers.threads, found.data.decode_threads) == (3, 5)
    assert found.identity() == auto.identity()
