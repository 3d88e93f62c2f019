"""Loading a model for use: its weights, the record of its training, and the calibrations stored with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from his2lip.serving.calibration import Calibration, stored_calibrations
from his2lip.serving.familiarity import Familiarity
from his2lip.serving.history import TrainingHistory

if TYPE_CHECKING:
    from his2lip.models import DualEncoder


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready for use, and what its answers rest on."""

    model: DualEncoder
    history: TrainingHistory
    calibrations: tuple[Calibration, ...] = ()


def load_for_inference(name: str) -> LoadedModel:
    """Loads a model by its name, on the GPU of this machine if it has one."""
    import torch

    from his2lip.models import checkpoint_folder, load_model, read_meta

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with checkpoint_folder(name) as folder:
        if folder is None:
            return LoadedModel(load_model(name, device=device), TrainingHistory.of(name, {}))
        meta, model = read_meta(folder), load_model(folder, device=device)
        familiarity = Familiarity.load(folder, weights=meta["tensor_digest"])
        return LoadedModel(
            model,
            replace(TrainingHistory.of(name, meta), familiarity=familiarity),
            tuple(Calibration.load(file) for file in stored_calibrations(folder)),
        )
