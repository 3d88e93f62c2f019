"""Copies tensors to a device without waiting for it."""

from __future__ import annotations

import torch


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` on `device`. A GPU reads it from pinned memory, because it would wait for other memory."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
