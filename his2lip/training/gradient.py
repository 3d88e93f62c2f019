"""The exact gradient of a large contrastive batch, computed in small pieces and on several ranks.

A contrastive loss does not average over micro-batches. The cached-gradient method (Gao et al. 2021, "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup") embeds the pieces without a graph, takes the
loss's gradient at the features, then embeds each piece again and sends its share of that gradient through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

Encode = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
# (N, D) image features, (N, D) caption features -> the scalar to differentiate
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_BUCKET = 25_000_000  # gradient elements per all-reduce: 100 MB of float32


def seed_everything(*key: int) -> None:
    """Seeds torch's generators by a key such as (seed, step, rank, piece), so that no state need be saved."""
    digest = hashlib.sha256(",".join(map(str, key)).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def accumulate(
    encode: Encode,
    objective: Objective,
    images: torch.Tensor,
    tokens: torch.Tensor,
    *,
    piece: int | None,
    seed: Sequence[int],
) -> torch.Tensor:
    """Adds the gradient of `objective` over the whole batch to the parameters; returns its value, detached.

    images float (N, 3, H, W), tokens int64 (N, L). At most `piece` pairs have a graph at once; None: all.
    The dropout of each piece depends on `seed` and its number, and is the same in both of its passes.
    """
    starts = range(0, len(images), piece or len(images))

    def embed(i: int, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = slice(start, start + (piece or len(images)))
        seed_everything(*seed, i)
        return encode(images[part], tokens[part])

    if len(starts) == 1:
        value = objective(*embed(0, 0))
        value.backward()
        return value.detach()

    with torch.no_grad():
        pieces = [embed(i, start) for i, start in enumerate(starts)]
    leaves = [torch.cat(side).requires_grad_() for side in zip(*pieces, strict=True)]
    value = objective(leaves[0], leaves[1])
    value.backward()
    for i, start in enumerate(starts):
        features = embed(i, start)
        rows = slice(start, start + len(features[0]))
        pairs = [
            (feature, leaf.grad[rows])
            for feature, leaf in zip(features, leaves, strict=True)
            if feature.requires_grad and leaf.grad is not None  # a frozen tower, a term of weight zero
        ]
        torch.autograd.backward([feature for feature, _ in pairs], [gradient for _, gradient in pairs])
    return value.detach()


def average_gradients(parameters: Iterable[nn.Parameter], *, world: int) -> None:
    """Replaces each gradient by its mean over the ranks, which equals the gradient of one process.

    Buckets depend on the order of the parameters only. DistributedDataParallel arranges its buckets by the
    order of arrival in the first step, so a resumed run could differ in the last bit.
    """
    if world == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([g.reshape(-1) for g in bucket])
        torch.distributed.all_reduce(flat)
        flat /= world
        for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Consecutive gradients of one dtype, at most `_BUCKET` elements or one tensor each."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
