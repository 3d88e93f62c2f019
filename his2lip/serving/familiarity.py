"""Familiarity: how far an image is from the training patches, and the limit up to which it is answered."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from his2lip.data.images import decode
from his2lip.data.shards import ShardSet
from his2lip.errors import CheckpointError
from his2lip.evaluation import ModelEncoder, chunks, read_images
from his2lip.files import filesystem, write_file
from his2lip.serving.appearance import APPEARANCE_VERSION, appearance

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

FAMILIARITY = "familiarity.safetensors"  # the file in a checkpoint's folder
QUANTILE = 0.99  # of the distances of the select split, which is the limit
MOST_PATCHES = 1024  # of each split, evenly spread
_LEAST_PATCHES = 20  # of each split, below which no limit is fitted
_BATCH = 64
_TENSORS = ("embedding_centres", "embedding_precision", "appearance_centres", "appearance_precision", "units")
_FIX = "remove the file; the command that trained the model fits it again"


@dataclass(frozen=True)
class Region:
    """Where the training patches lie in one space of D dimensions: one ellipsoid per class.

    centres    float (K, D), the mean of each class
    precision  float (D, D), the inverse of the covariance around the means
    """

    centres: np.ndarray
    precision: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, classes: list[str]) -> Region:
        """Of values (N, D) and their N classes. The covariance is shrunk (Ledoit and Wolf 2004)."""
        from sklearn.covariance import LedoitWolf

        names, place = np.unique(classes, return_inverse=True)
        centres = np.stack([values[place == k].mean(axis=0) for k in range(len(names))])
        covariance = LedoitWolf(assume_centered=True).fit(values - centres[place])
        return cls(centres, covariance.precision_)

    def distance(self, values: np.ndarray) -> np.ndarray:
        """float (N,): Mahalanobis distance of values (N, D) to the nearest centre (Lee et al. 2018)."""
        steps = values[:, None].astype(np.float64) - self.centres
        squares = np.einsum("nkd,de,nke->nk", steps, self.precision, steps)
        return np.sqrt(np.maximum(squares.min(axis=1), 0))


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a limit was fitted on.

    weights    tensor digest of the model
    dataset    its name, marked where it is generated; split, patches: where and on how many it was fitted
    reference  number of training patches from which distances are measured
    """

    weights: str
    dataset: str
    split: str
    patches: int
    reference: int
    quantile: float = QUANTILE
    appearance: int = APPEARANCE_VERSION


@dataclass(frozen=True)
class Familiarity:
    """Distances from the training patches, in units of the limit.

    An image has two distances: of its raw embedding, and of its appearance, since the embeddings of a trained
    model hardly differ between real and generated images. Each is divided by its own quantile on the select
    split (`units`), and the larger one counts. `limit` is the quantile of that on the same split.
    """

    base: Base
    embeddings: Region
    appearances: Region
    units: tuple[float, float]
    limit: float

    def distance(self, features: np.ndarray, appearances: np.ndarray) -> np.ndarray:
        """float (N,), above 1 beyond the limit, of raw features (N, D) and appearances (N, A)."""
        of_embedding = self.embeddings.distance(features) / self.units[0]
        of_appearance = self.appearances.distance(appearances) / self.units[1]
        return np.maximum(of_embedding, of_appearance) / self.limit

    def __str__(self) -> str:
        base = self.base
        return (
            f"the limit is {base.quantile:.0%} of {base.patches:,} patches of {base.dataset}, split "
            f"{base.split}, around {base.reference:,} training patches"
        )

    def save(self, folder: Path) -> Path:
        """Writes the file into a checkpoint's folder, completely or not at all."""
        regions = (self.embeddings, self.appearances)
        parts = [part for region in regions for part in (region.centres, region.precision)]
        parts.append(np.array([*self.units, self.limit]))
        stored = [np.ascontiguousarray(part, dtype=np.float32) for part in parts]
        base = json.dumps(asdict(self.base))
        about = {"base": base, "sha256": _digest(base, stored)}
        data = save(dict(zip(_TENSORS, stored, strict=True)), metadata=about)
        write_file(*filesystem(folder / FAMILIARITY), data, what=FAMILIARITY)
        return folder / FAMILIARITY

    @classmethod
    def load(cls, folder: Path, *, weights: str) -> Familiarity | None:
        """Reads the file of a checkpoint's folder; None where there is none, or it is of another version.

        Raises CheckpointError for a file that is damaged, or was fitted to other weights than `weights`.
        """
        file = folder / FAMILIARITY
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="numpy") as opened:
                about = opened.metadata()
                stored = [opened.get_tensor(name) for name in _TENSORS]
            if about["sha256"] != _digest(about["base"], stored):
                raise ValueError("its contents are not those of its sha256")
            base = Base(**json.loads(about["base"]))
            *parts, units = (part.astype(np.float64) for part in stored)
            first, second, limit = units.tolist()
            made = cls(base, Region(*parts[:2]), Region(*parts[2:]), (first, second), limit)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            what = f"{FAMILIARITY} cannot be read"
            raise CheckpointError(what, where=file, key=FAMILIARITY, fix=_FIX) from None
        if base.weights != weights:
            what = f"{FAMILIARITY} was fitted to other weights"
            raise CheckpointError(what, where=file, key="weights", fix=_FIX)
        return made if base.appearance == APPEARANCE_VERSION else None


def _digest(base: str, parts: list[np.ndarray]) -> str:
    """sha256 of the base as JSON and of the arrays' bytes."""
    whole = hashlib.sha256(base.encode())
    for part in parts:
        whole.update(part.tobytes())
    return whole.hexdigest()


def fit_familiarity(model: DualEncoder, shards: ShardSet, *, split: str, select: str) -> Familiarity | None:
    """Fits the limit for a model that was trained on `split`, on the split `select`.

    At most `MOST_PATCHES` of each split are read. None where a split has fewer than `_LEAST_PATCHES`.
    """
    reference, chosen = _rows(shards, split), _rows(shards, select)
    if min(len(reference), len(chosen)) < _LEAST_PATCHES:
        return None
    tissue = shards.table(split, ["tissue"])["tissue"].to_pylist()
    classes = [tissue[row] or "" for row in reference]
    features, appearances = _read(model, shards, split, reference)
    embeddings, looks = Region.fit(features, classes), Region.fit(appearances, classes)
    features, appearances = _read(model, shards, select, chosen)
    own = embeddings.distance(features), looks.distance(appearances)
    units = tuple(float(np.quantile(distances, QUANTILE)) for distances in own)
    limit = float(np.quantile(np.maximum(own[0] / units[0], own[1] / units[1]), QUANTILE))
    base = Base(
        weights=model.tensor_digest(),
        dataset=shards.info.title,
        split=select,
        patches=len(chosen),
        reference=len(reference),
    )
    return Familiarity(base, embeddings, looks, (units[0], units[1]), limit)


def _rows(shards: ShardSet, split: str) -> list[int]:
    """At most `MOST_PATCHES` row numbers of a split, evenly spread."""
    count = len(shards.table(split, ["patch_id"]))
    return sorted({int(row) for row in np.linspace(0, count - 1, min(count, MOST_PATCHES))})


def _read(model: DualEncoder, shards: ShardSet, split: str, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Raw features (N, D) and appearances (N, A) of rows of a split."""
    encoder = ModelEncoder(model)
    features: list[np.ndarray] = []
    appearances: list[np.ndarray] = []

    def examined(patch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        pixels = decode(patch["image"])
        return encoder.crops(pixels, None), appearance(pixels)

    patches = (patch for _, patch in read_images(shards, split, rows))
    with ThreadPoolExecutor(2) as pool:
        for batch in chunks(patches, _BATCH):
            crops, looks = zip(*pool.map(examined, batch), strict=True)
            features.append(encoder.encode(np.concatenate(crops)))
            appearances += looks
    return np.concatenate(features), np.stack(appearances)
