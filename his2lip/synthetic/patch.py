"""Renders one generated patch from its description: tissue, staining, light and scanner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from his2lip import taxonomy
from his2lip.data.images import (
    CARBON,
    CHROMOGENS,
    DAB,
    EOSIN,
    HAEMATOXYLIN,
    HAEMOGLOBIN,
    STAINED_FROM,
    tilt,
    transmit,
    unit,
)
from his2lip.errors import TaxonomyError
from his2lip.synthetic.biomarkers import Reading, chromogen
from his2lip.synthetic.cases import NOMINAL_BIOLOGY, NOMINAL_STAINING, Biology, SlideStaining
from his2lip.synthetic.grid import Grid, Map
from his2lip.synthetic.scanners import DEFAULT, Scanner, capture
from his2lip.synthetic.scene import Scene
from his2lip.synthetic.tissues import build

Stain = Literal["DAB", "AEC", "haematoxylin", "H&E"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The description of a patch. `biomarker` has an effect only with the stains DAB and AEC.

    size     side in pixels; mpp: microns per pixel
    reading  the staining that the dataset's label prescribes; None: the case decides
    centre   kind (cells.KINDS) of the cell in the middle of the field
    Raises TaxonomyError for an unknown tissue type.
    """

    tissue: str
    biomarker: str | None = None
    stain: Stain = "DAB"
    size: int = 64
    mpp: float = 0.452  # at 64 px, the field of view of MIHIC: 29 microns
    biology: Biology = NOMINAL_BIOLOGY
    staining: SlideStaining = NOMINAL_STAINING
    scanner: Scanner = DEFAULT
    reading: Reading | None = None
    centre: str | None = None

    def __post_init__(self) -> None:
        if self.tissue not in taxonomy.TISSUES:
            what, fix = f"unknown tissue type '{self.tissue}'", f"known: {', '.join(taxonomy.TISSUES)}"
            raise TaxonomyError(what, key=self.tissue, fix=fix)

    @property
    def grid(self) -> Grid:
        return Grid(self.size, self.mpp)


def render(spec: Spec, rng: np.random.Generator, *, scene: Scene | None = None) -> NDArray[np.uint8]:
    """The patch, uint8 (size, size, 3) RGB. Equal specs and generators in equal states give equal pixels.

    scene  tissue that is already built: serial sections show the same field in several stains
    """
    scene_rng, stain_rng, scanner_rng = rng.spawn(3)
    if scene is None:
        scene = build(spec.tissue, spec.grid, scene_rng, spec.biology, centre=spec.centre)
    light = stain(scene, spec, stain_rng)
    return capture(light, spec.grid, spec.scanner, spec.staining, scanner_rng)


def true_share(spec: Spec, rng: np.random.Generator, *, scene: Scene) -> float:
    """The share of the scene's tissue, 0 to 1, on which `render` binds the chromogen of the biomarker.

    It counts pixels from the density from which they count as stained when a patch is measured. Unspecific
    haze does not count. `rng` is in the state in which `render` gets it.
    """
    if spec.biomarker is None or spec.stain not in CHROMOGENS:
        return 0.0
    _, rng, _ = rng.spawn(3)
    bound = chromogen(scene, spec.biomarker, spec.biology, rng, spec.reading) * spec.staining.chromogen
    here = np.exp(spec.staining.uneven * rng.standard_normal(2))[0] * spec.staining.thickness
    tissue = scene.tissue > 0.5
    return float((bound[tissue] * here >= STAINED_FROM).mean()) if tissue.any() else 0.0


def stain(scene: Scene, spec: Spec, rng: np.random.Generator) -> NDArray[np.float32]:
    """Transmitted light of the stained scene, float32 (S, S, 3) in 0..1."""
    look = spec.staining
    second_stain = _second_stain(scene, spec, rng)
    here, counterstain_here = np.exp(look.uneven * rng.standard_normal(2))
    haematoxylin = _counterstain(scene) * look.counterstain * counterstain_here + look.wash * scene.tissue
    amounts = [haematoxylin, *second_stain]
    amounts.append(scene.layers["carbon"] + 0.5 * scene.layers["dirt"])
    amounts.append(0.20 * scene.layers["red"] * (0.3 if spec.stain == "H&E" else 1.0))
    second = CHROMOGENS.get(spec.stain, DAB)
    vectors = np.stack(
        [
            tilt(HAEMATOXYLIN, look.tilts[0]),
            tilt(second, look.tilts[1]),
            tilt(EOSIN, look.tilts[2]),
            unit(CARBON),
            unit(HAEMOGLOBIN),
        ]
    )
    return transmit(np.stack(amounts, -1) * np.float32(look.thickness * here), vectors)


def _second_stain(scene: Scene, spec: Spec, rng: np.random.Generator) -> tuple[Map, Map]:
    """Amounts (S, S) of chromogen and of eosin, in absorbance."""
    nothing = np.zeros_like(scene.tissue)
    if spec.stain == "H&E":
        return nothing, _eosin(scene) * spec.staining.eosin
    if spec.stain == "haematoxylin" or spec.biomarker is None:
        return nothing, nothing
    bound = chromogen(scene, spec.biomarker, spec.biology, rng, spec.reading) * spec.staining.chromogen
    # Unspecific staining: haze on all tissue, stronger on cells than on fibres, strongest on dead tissue.
    haze = spec.staining.haze * scene.tissue * (0.6 + 0.6 * scene.maps.body + 1.2 * scene.layers["debris"])
    return bound + haze, nothing


def _counterstain(scene: Scene) -> Map:
    """Absorbance (S, S) of haematoxylin: strong in chromatin, weak in cytoplasm and matrix."""
    maps, cells, layers = scene.maps, scene.cells, scene.layers
    owner = maps.nucleus_owner
    dark, clump, rim = (cells.of(name) for name in ("dark", "clump", "rim"))
    shape = 1 + clump[owner] * scene.texture[0] + rim[owner] * np.exp(-(((maps.depth - 0.9) / 0.14) ** 2))
    chromatin = (dark * cells.tone)[owner] * np.clip(shape / (1 + 0.25 * rim[owner]), 0.15, 2.5)
    chromatin = chromatin + 0.35 * maps.nucleoli
    around = cells.of("cytoplasm")[maps.body_owner] * maps.body
    around = around + 0.05 * layers["collagen"] + 0.10 * layers["muscle"] + 0.10 * layers["debris"]
    around = around + 0.22 * layers["matrix"] + 0.10 * layers["mucus"] + 0.03 * layers["red"] + 0.03
    ground = scene.tissue * around * (1 + 0.12 * scene.texture[1])
    return np.maximum(maps.nucleus * chromatin + (1 - maps.nucleus) * ground + 0.05 * layers["mucus"], 0)


def _eosin(scene: Scene) -> Map:
    """Absorbance (S, S) of eosin, in collagen, muscle, cytoplasm, debris and red blood cells."""
    layers, maps = scene.layers, scene.maps
    ground = 0.03 + 0.16 * layers["collagen"] + 0.26 * layers["muscle"] + 0.24 * layers["debris"]
    ground = ground + 0.45 * layers["red"] + 0.05 * layers["matrix"] + 0.14 * maps.body
    return scene.tissue * (1 - 0.6 * maps.nucleus) * ground * (1 + 0.1 * scene.texture[1])
