"""The schema of shards: their columns, and one row of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa

from his2lip.data.shards.info import SCHEMA_VERSION

VERSION_KEY = b"his2lip.schema_version"

SCHEMA = pa.schema(
    [
        pa.field("patch_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("case_id", pa.string()),
        pa.field("slide_id", pa.string()),
        pa.field("tissue", pa.string()),
        pa.field("biomarker", pa.string()),
        pa.field("label", pa.string()),
        pa.field("stain", pa.string()),
        pa.field("region_id", pa.string()),
        pa.field("twin_id", pa.string()),
        pa.field("x", pa.int32()),
        pa.field("y", pa.int32()),
        pa.field("score", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("mpp", pa.float32()),
        pa.field("sha256", pa.string(), nullable=False),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
# Columns that are dictionary-encoded, since their values repeat.
DICTIONARIES = ["dataset", "split", "case_id", "slide_id", "tissue", "biomarker", "label", "stain", "score"]
WITHOUT_IMAGE = [name for name in SCHEMA.names if name != "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One row of a shard. None: unknown.

    patch_id           unique: dataset/relative path[#tile]
    image              encoded bytes
    tissue, biomarker  canonical names of the taxonomy
    label              the dataset's own class
    x, y               left and top of a tile in its image, in pixels
    mpp                microns per pixel, rounded to float32 as in its column
    sha256             of `image`, hexadecimal; computed where it is empty
    """

    patch_id: str
    image: bytes = field(repr=False)
    dataset: str
    split: str
    width: int
    height: int
    case_id: str | None = None
    slide_id: str | None = None
    tissue: str | None = None
    biomarker: str | None = None
    label: str | None = None
    stain: str | None = None
    region_id: str | None = None
    twin_id: str | None = None
    x: int | None = None
    y: int | None = None
    score: str | None = None
    mpp: float | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.mpp is not None:  # digests are computed from the values that will be read back
            object.__setattr__(self, "mpp", float(np.float32(self.mpp)))
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.image).hexdigest())


assert {f.name for f in fields(Patch)} == set(SCHEMA.names)
