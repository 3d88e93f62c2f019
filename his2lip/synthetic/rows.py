"""One row of a twin before its image is drawn: what the patch shows, and its columns in the shard."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from his2lip.data.cards import Card, load_card
from his2lip.synthetic import patch
from his2lip.synthetic.biomarkers import Reading
from his2lip.synthetic.cases import Biology, SlideStaining, draw_biology, draw_staining, keyed_rng
from his2lip.synthetic.patch import Spec, Stain, render
from his2lip.synthetic.scanners import SCANNERS, Scanner
from his2lip.synthetic.scene import Scene
from his2lip.synthetic.tissues import build

_GENERATED_ONLY = {"nuclei": "benchmarks/datasets/own/nuclei.yaml"}  # their cards


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinRow:
    """A patch that can be drawn. `columns` are those that the reader of the real dataset fills.

    All random choices are keyed by the seed, the dataset, the case and one of: slide, field, patch id. So
    rows can be drawn in any order and by any number of processes, with the same result.
    """

    seed: int
    dataset: str
    split: str
    case: str  # the generated case; it exists also where the real dataset names no cases
    slide: str  # rows of one slide have the same staining
    field: str  # rows of one field show the same tissue
    patch_id: str
    shows: str  # tissue type of the scene
    marker: str | None  # biomarker
    stain: Stain
    size: int
    mpp: float
    format: Literal["png", "jpeg"]
    columns: dict[str, Any]
    reading: Reading | None = None
    centre: str | None = None
    biology: tuple[tuple[str, Any], ...] = ()  # fields of Biology that are set, in place of the case's
    staining: tuple[tuple[str, Any], ...] = ()  # fields of SlideStaining that are set
    scanner: Scanner | None = None  # None: that of the dataset

    def spec(self) -> Spec:
        """The full description of the patch."""
        biology = _biology(self.seed, self.dataset, self.case)
        return Spec(
            tissue=self.shows,
            biomarker=self.marker,
            stain=self.stain,
            size=self.size,
            mpp=self.mpp,
            biology=replace(biology, **dict(self.biology)),
            staining=replace(
                _staining(self.seed, self.dataset, self.case, self.slide), **dict(self.staining)
            ),
            scanner=self.scanner or SCANNERS[self.dataset],
            reading=self.reading,
            centre=self.centre,
        )


@lru_cache(maxsize=256)
def _biology(seed: int, dataset: str, case: str) -> Biology:
    return draw_biology(keyed_rng(seed, dataset, case), _organ(dataset))


@lru_cache
def _organ(dataset: str) -> str:
    return card_of(dataset).organ[0]


def card_of(dataset: str) -> Card:
    """The card of a twin, or of a dataset that only exists as generated patches."""
    return load_card(_GENERATED_ONLY.get(dataset, dataset))


@lru_cache(maxsize=256)
def _staining(seed: int, dataset: str, case: str, slide: str) -> SlideStaining:
    of_case = keyed_rng(seed, dataset, case, "hue of the chromogen")
    return draw_staining(keyed_rng(seed, dataset, case, slide), of_case)


def pixels(row: TwinRow) -> NDArray[np.uint8]:
    """The image of the row, uint8 (size, size, 3) RGB."""
    spec = row.spec()
    return render(spec, _rng(row), scene=_scene(row, spec))


def true_share(row: TwinRow) -> float:
    """The true stained share of the row's tissue, 0 to 1 (`patch.true_share`)."""
    spec = row.spec()
    return patch.true_share(spec, _rng(row), scene=_scene(row, spec))


def _scene(row: TwinRow, spec: Spec) -> Scene:
    place = keyed_rng(row.seed, row.dataset, row.case, row.field)
    return build(spec.tissue, spec.grid, place, spec.biology, centre=spec.centre)


def _rng(row: TwinRow) -> np.random.Generator:
    return keyed_rng(row.seed, row.dataset, row.case, row.patch_id)


def draw(row: TwinRow) -> bytes:
    """The image of the row, encoded as PNG or JPEG."""
    image = pixels(row)
    if row.format == "jpeg":
        import simplejpeg

        return simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420")
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()
