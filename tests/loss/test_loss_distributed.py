"""2 and 4 gloo processes on loopback give the same loss and gradients as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import other_ranks

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
# Rows of each rank. One of the four uneven ranks has none.
GROUPS = {
    "even-2": [13, 13],
    "uneven-2": [N - 3, 3],
    "near-even-4": [7, 7, 6, 6],
    "uneven-4": [4, 0, N - 9, 5],
}


def whole_batch() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    features = [torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [*features, *(torch.randint(-1, k, (N,), generator=generator) for k in (4, 5))]


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


def worker(rank: int, folder: str) -> None:
    """One process, which is this rank of each group that is large enough to have it."""
    torch.set_num_threads(1)
    for group, sizes in GROUPS.items():
        if rank < len(sizes):
            torch.save(share(rank, sizes, f"file://{folder}/{group}.meet"), f"{folder}/{group}.{rank}.pt")


def share(rank: int, sizes: list[int], meet: str) -> dict[str, Any]:
    """The gradients of the rows of a rank, then their mean over ranks, as in DistributedDataParallel."""
    torch.distributed.init_process_group("gloo", meet, rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    mine = [t[start : start + sizes[rank]] for t in whole_batch()]
    results = {}
    for name, options in CASES.items():
        result = step(mine, **options)
        for key in ("weight", "scale"):
            torch.distributed.all_reduce(result[key])
            result[key] /= len(sizes)
        results[name] = result
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank of each group found, from four processes. This one is rank 0."""
    folder, before = tmp_path_factory.mktemp("ranks"), torch.get_num_threads()
    try:
        with other_ranks(worker, str(folder), count=3):
            worker(0, str(folder))
    finally:
        torch.set_num_threads(before)
    return folder


@pytest.mark.parametrize("group", GROUPS)
def test_several_processes_give_the_loss_and_gradients_of_one(group: str, folder: Path) -> None:
    for rank in range(len(GROUPS[group])):
        found = torch.load(folder / f"{group}.{rank}.pt", weights_only=True)
        for name, options in CASES.items():
            one, many = step(whole_batch(), **options), found[name]
            assert many["values"] == pytest.approx(one["values"], rel=TOLERANCE, abs=1e-9), (rank, name)
            for key in ("weight", "scale"):
                torch.testing.assert_close(
                    many[key], one[key], rtol=TOLERANCE, atol=1e-9, msg=f"{name} {key}"
                )
