"""Augmentation without an order: what becomes of a patch depends on (seed, epoch, patch) alone."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

TURNS = 8  # a square's symmetries; tissue has no up, so each is as likely as any other


def draw_turn(seed: int, epoch: int, key: str) -> int:
    """0 to 7, evenly: bit 0 mirrors left and right, bit 1 top and bottom, bit 2 transposes; 0 is as is."""
    text = f"{seed}/{epoch}/{key}".encode()
    return hashlib.blake2b(text, digest_size=1, person=b"his2lip.turn").digest()[0] % TURNS


def turn(pixels: Pixels, code: int, out: Pixels) -> None:
    """Writes one of the eight flips and quarter turns of `pixels` (S, S, 3) to `out`, of the same shape."""
    if code & 1:
        pixels = pixels[:, ::-1]
    if code & 2:
        pixels = pixels[::-1]
    if code & 4:
        pixels = pixels.transpose(1, 0, 2)
    for channel in range(3):  # five times as fast as numpy's copy of all three at once
        np.copyto(out[..., channel], pixels[..., channel])
