"""2 and 4 gloo processes on loopback give the same loss and gradients as one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from his2lip.loss.targets import SimilarityWeights
from his2lip.loss.wise import WISELoss

N, D, TOLERANCE = 26, 5, 1e-6
CASES = {
    "default": {},
    "reference": {"method": "reference"},
    "tied scale, three weights": {
        "kappa": "scale",
        "similarity": SimilarityWeights(biomarker=0.5),
        "tau": 0.5,
    },
    "released": {"normalize": False, "clamp": False},
    "hard": {"similarity": None},
}


def whole_batch() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    features = [torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [*features, *(torch.randint(-1, k, (N,), generator=generator) for k in (4, 5))]


def shares(world: int, *, uneven: bool) -> list[int]:
    """The number of rows of each rank. Four uneven ranks include one without rows."""
    if uneven:
        return [N - 3, 3] if world == 2 else [4, 0, N - 9, 5]
    return [N // world] * world if N % world == 0 else [N // world + (r < N % world) for r in range(world)]


def step(batch: list[torch.Tensor], **options) -> dict[str, torch.Tensor | dict[str, float]]:
    """The loss, and the gradients of parameters that all ranks share: a linear map and the logit scale."""
    image, text, tissue, biomarker = batch
    weight = torch.eye(D, dtype=torch.float64).add_(0.1).requires_grad_()
    scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    out = WISELoss(tile=4, **options)(image @ weight, text @ weight, tissue, biomarker, scale)
    out.total.backward()
    assert weight.grad is not None
    assert scale.grad is not None
    return {"values": out.metrics(), "weight": weight.grad, "scale": scale.grad}


def worker(rank: int, sizes: list[int], out: str) -> None:
    """One rank: the gradients of its rows, then their mean over ranks, as in DistributedDataParallel."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    mine = [t[start : start + sizes[rank]] for t in whole_batch()]
    results = {}
    for name, options in CASES.items():
        result = step(mine, **options)
        for key in ("weight", "scale"):
            torch.distributed.all_reduce(result[key])
            result[key] /= len(sizes)
        results[name] = result
    torch.save(results, f"{out}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("uneven", [False, True], ids=["near even", "uneven"])
def test_several_processes_give_the_loss_and_gradients_of_one(world, uneven, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sizes = shares(world, uneven=uneven)
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    code = (
        "import sys; sys.path.insert(0, {0!r}); import test_loss_distributed as t; t.worker({1}, {2}, {3!r})"
    )
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(here, rank, sizes, str(tmp_path))],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, errors
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, options in CASES.items():
            one, many = step(whole_batch(), **options), found[name]
            assert many["values"] == pytest.approx(one["values"], rel=TOLERANCE, abs=1e-9), (rank, name)
            for key in ("weight", "scale"):
                torch.testing.assert_close(
                    many[key], one[key], rtol=TOLERANCE, atol=1e-9, msg=f"{name} {key}"
                )
