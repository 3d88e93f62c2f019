"""Loading a model for use: its weights, the record of its training, and the calibrations stored with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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


def load_for_inference(name: str, *, precision: Literal["auto", "fp32", "bf16"] = "fp32") -> LoadedModel:
    """Loads a model by its name, on the GPU of this machine if it has one.

    precision  as that of a benchmark; auto: bf16 on a GPU that supports it, else fp32
    """
    import torch

    from his2lip.models import (
        checkpoint_folder,
        folder_of,
        load_model,
        read_meta,
        read_steady,
        resolve_precision,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = resolve_precision(precision, torch.device(device), key="--precision")

    def load(source: str | Path) -> DualEncoder:
        return load_model(source, device=device, precision=chosen).lowered()

    def read() -> LoadedModel:
        with checkpoint_folder(name) as folder:
            if folder is None:
                return LoadedModel(load(name), TrainingHistory.of(name, {}))
            meta, model = read_meta(folder), load(folder)
            familiarity = Familiarity.load(folder, weights=meta["tensor_digest"])
            return LoadedModel(
                model,
                replace(TrainingHistory.of(name, meta), familiarity=familiarity),
                tuple(Calibration.load(file) for file in stored_calibrations(folder)),
            )

    return read_steady(Path(folder_of(name)), read)
