"""The global batch seen from one rank: features gathered with their gradients, labels, and its own rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Ranks of the default process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_batch(
    image: torch.Tensor, text: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, slice]:
    """The global (N, D) image features, (N, D) text features, (M, N) labels, and this rank's rows among them.

    Takes this rank's (R, D), (R, D) and int64 (M, R). R may differ between ranks. A gradient that any rank
    sends to a feature reaches the rank that owns it, summed over ranks.
    """
    here = torch.tensor([len(image)], device=image.device)
    sizes_on_device = here.new_empty(world_size())
    dist.all_gather_into_tensor(sizes_on_device, here)
    sizes: list[int] = sizes_on_device.tolist()
    rank = dist.get_rank()
    start = sum(sizes[:rank])
    # One collective for both modalities, so that all ranks meet in the same order in backward too.
    features = _GatherRows.apply(torch.cat([image, text], dim=1), sizes, rank)
    global_image, global_text = features.split([image.shape[1], text.shape[1]], dim=1)
    return global_image, global_text, _gather(labels.T, sizes).T, slice(start, start + sizes[rank])


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """A new tensor, the sum of `values` over ranks, without gradient."""
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


class _GatherRows(torch.autograd.Function):
    """(R, D) of each rank -> (N, D) of all; backward sums over ranks and keeps this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, sizes: list[int], rank: int) -> torch.Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        return _gather(local, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.sizes)[ctx.rank], None, None


def _gather(local: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Rows of all ranks in rank order; shorter ranks are padded on the way and cut again."""
    longest = max(sizes)
    padded = local.new_zeros(longest, *local.shape[1:])
    padded[: len(local)] = local
    gathered = padded.new_empty(longest * len(sizes), *local.shape[1:])
    dist.all_gather_into_tensor(gathered, padded)
    if all(size == longest for size in sizes):
        return gathered
    return torch.cat([part[:size] for part, size in zip(gathered.split(longest), sizes, strict=True)])
