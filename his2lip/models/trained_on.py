"""What a checkpoint was trained on (`trained_on.safetensors`): images and cases by digest; without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from his2lip.errors import CheckpointError

RECORD = "trained_on.safetensors"  # the file in a checkpoint's folder
RECORDED = "trained_on"  # key in his2lip.json: a summary of the file, and its sha256
_ABOUT = "about"  # tensor of the file that has the other fields, as the bytes of JSON
_FIX = "copy the whole checkpoint directory again"


def _no_keys() -> np.ndarray:
    return np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True)
class TrainingRecord:
    """The datasets, images and cases that a model and the models it began from were trained on.

    datasets  names of the datasets; that of a generated one ends with `-generated`
    digests   digests of the prepared datasets
    images    uint64 (N,), ascending: `image_keys` of the images
    cases     uint64 (M,), ascending: `case_keys` of the cases
    complete  False where a part of the training data is not recorded

    Keys are 64 bits of a sha256. That one of 65,437 images has by chance the key of one of 195,001 others
    (MIHIC's test and train splits) has the probability 7e-10. A file has 8 bytes per key.
    """

    datasets: tuple[str, ...]
    digests: tuple[str, ...] = ()
    images: np.ndarray = field(default_factory=_no_keys, repr=False)
    cases: np.ndarray = field(default_factory=_no_keys, repr=False)
    complete: bool = True

    @classmethod
    def union(cls, records: Iterable[TrainingRecord | None]) -> TrainingRecord | None:
        """What any of several models was trained on; None where none of them has a record."""
        known = [record for record in records if record is not None]
        if not known:
            return None
        return cls(
            datasets=tuple(dict.fromkeys(name for one in known for name in one.datasets)),
            digests=tuple(dict.fromkeys(digest for one in known for digest in one.digests)),
            images=np.unique(np.concatenate([one.images for one in known])),
            cases=np.unique(np.concatenate([one.cases for one in known])),
            complete=all(one.complete for one in known),
        )

    @classmethod
    def of_checkpoint(
        cls, meta: Mapping[str, Any], data: bytes | None, *, where: str
    ) -> TrainingRecord | None:
        """The record of a checkpoint, from its his2lip.json and its file; None for a model without training.

        A checkpoint of an earlier version has no file; only its dataset is known. Raises CheckpointError for
        a file that is missing, or is not the one that his2lip.json describes.
        """
        if RECORDED in meta:
            if data is None or hashlib.sha256(data).hexdigest() != meta[RECORDED].get("sha256"):
                what = f"{RECORD} is missing, or is not the one that his2lip.json describes"
                raise CheckpointError(what, where=where, key=RECORD, fix=_FIX)
            return cls.from_bytes(data, where=where)
        digests = (meta["data_digest"],) if "data_digest" in meta else ()
        datasets = tuple((meta.get("terms") or {}).get("datasets", ()))
        return cls(datasets, digests, complete=False) if datasets or digests else None

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> TrainingRecord:
        """Reads `data` of another record. Raises CheckpointError for anything else."""
        try:
            found = load(data)
            about = json.loads(found.pop(_ABOUT).tobytes())
            if any(keys.dtype != np.uint64 or keys.ndim != 1 for keys in found.values()):
                raise TypeError
            return cls(
                datasets=tuple(about["datasets"]),
                digests=tuple(about["digests"]),
                images=np.unique(found["images"]),
                cases=np.unique(found["cases"]),
                complete=bool(about["complete"]),
            )
        except (SafetensorError, ValueError, KeyError, TypeError):
            what = f"{RECORD} cannot be read"
            raise CheckpointError(what, where=where, key=RECORD, fix=_FIX) from None

    @cached_property
    def data(self) -> bytes:
        """The bytes of the file, in the format of safetensors; equal records give equal bytes."""
        about = {"datasets": self.datasets, "digests": self.digests, "complete": self.complete}
        text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        return bytes(save({_ABOUT: text, "images": self.images, "cases": self.cases}))

    def __str__(self) -> str:
        known = f"{len(self.images):,} images, {len(self.cases):,} cases of {', '.join(self.datasets)}"
        return f"trained on {known}{'' if self.complete else '; not all of its training data are recorded'}"

    def summary(self) -> dict[str, Any]:
        """The value of `trained_on` in his2lip.json."""
        return {
            "datasets": list(self.datasets),
            "images": len(self.images),
            "cases": len(self.cases),
            "complete": self.complete,
            "sha256": hashlib.sha256(self.data).hexdigest(),
        }


def image_keys(sha256: Iterable[str]) -> np.ndarray:
    """uint64 (N,): the first 64 bits of each image's sha256, which is given in hexadecimal."""
    return np.array([int(digest[:16], 16) for digest in sha256], dtype=np.uint64)


UNKNOWN_CASE = 0  # key of a patch whose case is unknown


def case_keys(dataset: str, case_ids: Iterable[str | None]) -> np.ndarray:
    """uint64 (N,): 64 bits of the sha256 of dataset and case, so that no identifier is stored.

    UNKNOWN_CASE for a case that is unknown.
    """
    known: dict[str | None, int] = {None: UNKNOWN_CASE}
    keys = []
    for case in case_ids:
        if case not in known:
            text = f"{dataset}\n{case}".encode()
            known[case] = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        keys.append(known[case])
    return np.array(keys, dtype=np.uint64)
