"""The batch that the stream gives to the training loop: plain tensors, no Ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """One rank's share of the global batch of one step (B pairs).

    images     uint8 (B, 3, H, W) RGB, already at the model's input size, augmented, not yet normalised
    captions   B sentences, drawn for (seed, epoch, patch_id)
    tissue     int64 (B,) ids of `taxonomy.TISSUES`, -1 where the label is missing
    biomarker  int64 (B,) ids of `taxonomy.BIOMARKERS`, -1 where the label is missing
    finding    int64 (B,) equal for equal staining bands and classes that captions follow, -1 for none
    patch_ids  B unique ids, in the order of the plan
    step       the global step that this batch belongs to, from 0
    """

    images: torch.Tensor
    captions: list[str]
    tissue: torch.Tensor
    biomarker: torch.Tensor
    finding: torch.Tensor
    patch_ids: list[str]
    step: int

    def __len__(self) -> int:
        return len(self.patch_ids)
