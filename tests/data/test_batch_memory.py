"""The memory of batches: used again once nobody holds the batch, and never before."""

from __future__ import annotations

from pathlib import Path

import torch
from stream_data import stream, write_patches

from his2lip.data.stream.buffers import BatchMemory


def test_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    memory = BatchMemory(keep=2)
    first = memory.take((4, 8, 8, 3))
    address = first.ctypes.data
    image = torch.from_numpy(first).permute(0, 3, 1, 2)[1]  # a view keeps the whole
    del first
    second = memory.take((4, 8, 8, 3))
    assert second.ctypes.data != address
    del image
    again = memory.take((4, 8, 8, 3))
    assert again.ctypes.data == address
    assert memory.take((2, 8, 8, 3)).shape == (2, 8, 8, 3)


def test_a_caller_that_keeps_every_batch_finds_each_unchanged(tmp_path: Path) -> None:
    shards = write_patches(tmp_path / "set", patches=150)
    with stream(shards, stop_step=25, prefetch=2) as kept:
        batches = list(kept)
    images = [batch.images.clone() for batch in batches]
    addresses = {batch.images.data_ptr() for batch in batches}
    assert len(addresses) == len(batches)
    with stream(shards, stop_step=25, prefetch=2) as passing:
        seen = set()
        for batch, expected in zip(passing, images, strict=True):
            assert torch.equal(batch.images, expected)
            seen.add(batch.images.data_ptr())
    assert len(seen) <= 2 + 2 + 1 < len(batches)
    for batch, expected in zip(batches, images, strict=True):
        assert torch.equal(batch.images, expected)
