"""The global batch as one rank sees it: its own rows, features gathered with gradient, sums over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Ranks:
    """How many of the N rows of the global batch each rank has, in rank order; a rank may have none."""

    sizes: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, rows: int, device: torch.device) -> Ranks:
        """Exchanges the number of rows with the other ranks of the default process group.

        This is a collective operation. Without a process group there is one rank, which has all rows.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return cls((rows,), 0)
        sizes = torch.empty(dist.get_world_size(), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(sizes, torch.tensor([rows], device=device))
        return cls(tuple(sizes.tolist()), dist.get_rank())

    @property
    def count(self) -> int:
        """Number of ranks."""
        return len(self.sizes)

    @property
    def own(self) -> slice:
        """This rank's rows of the global batch."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def gather(self, local: torch.Tensor) -> torch.Tensor:
        """(R, ...) of each rank -> (N, ...) of all ranks, in rank order, without gradient.

        The collective needs equal shapes, so ranks with fewer rows send padding, which is then removed.
        """
        if self.count == 1:
            return local
        longest = max(self.sizes)
        padded = local.new_zeros(longest, *local.shape[1:])
        padded[: len(local)] = local
        gathered = padded.new_empty(longest * self.count, *local.shape[1:])
        dist.all_gather_into_tensor(gathered, padded)
        if min(self.sizes) == longest:
            return gathered
        parts = zip(gathered.split(longest), self.sizes, strict=True)
        return torch.cat([part[:size] for part, size in parts])

    def gather_with_gradient(self, local: torch.Tensor) -> torch.Tensor:
        """(R, D) of each rank -> (N, D) of all ranks, in rank order.

        In backward, the gradients of all ranks with respect to a row are summed on the rank that has it.
        """
        return local if self.count == 1 else _Gather.apply(local, self)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of `values`, of one shape on all ranks, without gradient."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def logsumexp(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) of each rank -> (N,): log of the sum over ranks of exp(values), without gradient."""
        if self.count == 1:
            return values
        gathered = values.new_empty(self.count * len(values))
        dist.all_gather_into_tensor(gathered, values.contiguous())
        return gathered.view(self.count, -1).logsumexp(dim=0)


class _Gather(torch.autograd.Function):
    """`Ranks.gather` with a backward that sums gradients over ranks and returns those of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return ranks.gather(local)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.ranks.sum(gradient.contiguous())[ctx.ranks.own], None
