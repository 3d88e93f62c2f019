"""Where each biomarker stains: the cells and structures that bind it, how many, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from his2lip.synthetic.cases import Biology
from his2lip.synthetic.cells import NAMES
from his2lip.synthetic.grid import Map, noise, step
from his2lip.synthetic.scene import Scene

Pattern = Literal["nuclear", "membranous", "endothelial", "stromal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How one kind of cell binds the antibody. Amounts are absorbances of the chromogen."""

    share: float | None  # probability that a cell is stained; None: `Biology.positive` of the biomarker
    nucleus: float = 0.0
    membrane: float = 0.0
    cytoplasm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """How one biomarker stains: its pattern, and the cells and structures that bind it."""

    pattern: Pattern
    cells: dict[str, Bound] = field(default_factory=dict)  # by kind of cell (cells.KINDS)
    layers: dict[str, float] = field(default_factory=dict)  # absorbance by structure (scene.LAYERS)
    granular: float = 0.15  # how granular the chromogen is in the cytoplasm


def _nuclear(tumour: float, **others: tuple[float, float]) -> Programme:
    """A nuclear stain. The case decides the share of tumour nuclei that stain.

    tumour  absorbance of stained tumour nuclei
    others  (share, absorbance) of stained nuclei of other kinds of cell
    """
    cells = {kind: Bound(share=share, nucleus=strength) for kind, (share, strength) in others.items()}
    return Programme(pattern="nuclear", cells={"tumour": Bound(share=None, nucleus=tumour)} | cells)


def _surface(
    kinds: dict[str, tuple[float, float, float]],
    *,
    layers: dict[str, float] | None = None,
    granular: float = 0.15,
) -> Programme:
    """A membranous or cytoplasmic stain: kind of cell -> (share, membrane, cytoplasm)."""
    cells = {k: Bound(share=s, membrane=m, cytoplasm=c) for k, (s, m, c) in kinds.items()}
    return Programme(pattern="membranous", cells=cells, layers=layers or {}, granular=granular)


PROGRAMMES: dict[str, Programme] = {
    # nuclear
    "Ki67": _nuclear(0.95, T=(0.10, 0.8), B=(0.25, 0.9), fibroblast=(0.02, 0.5), pneumocyte=(0.02, 0.6)),
    "P53": _nuclear(0.90, T=(0.03, 0.25), B=(0.03, 0.25), fibroblast=(0.03, 0.2), columnar=(0.1, 0.25)),
    "Cyclin-D1": _nuclear(
        0.75,
        macrophage=(0.25, 0.35),
        endothelium=(0.35, 0.4),
        myofibroblast=(0.2, 0.35),
        columnar=(0.15, 0.4),
    ),
    "CDK4": Programme(
        pattern="nuclear",
        cells={
            "tumour": Bound(share=None, nucleus=0.65, cytoplasm=0.10),
            "macrophage": Bound(share=0.3, nucleus=0.3),
            "myofibroblast": Bound(share=0.15, nucleus=0.3),
            "B": Bound(share=0.2, nucleus=0.3),
            "columnar": Bound(share=0.2, nucleus=0.3),
        },
    ),
    "ER": _nuclear(0.80),
    "PR": _nuclear(0.80),
    # 5-10 % of CD4+ T cells in blood, more around tumours (Nishikawa and Sakaguchi, Curr Opin Immunol 27
    # (2014) 1-7); of all T cells, about a tenth.
    "FOXP3": Programme(pattern="nuclear", cells={"T": Bound(share=0.10, nucleus=0.9)}),
    # membranous and cytoplasmic
    "CD3": _surface({"T": (0.95, 0.95, 0.40)}),
    "CD8": _surface({"T": (0.45, 0.95, 0.35)}),
    "CD20": _surface({"B": (0.97, 1.05, 0.30)}),
    "CD38": _surface({"plasma": (0.97, 0.85, 0.60), "B": (0.10, 0.4, 0.1), "T": (0.06, 0.35, 0.1)}),
    "CD68": _surface({"macrophage": (0.97, 0.10, 0.85)}, granular=0.55),
    "HER2": _surface({"tumour": (1.0, 0.9, 0.12)}),
    # Pneumocytes of both types have keratins, so the alveolar lining stains without gaps (Moll, Divo and
    # Langbein, Histochem Cell Biol 129 (2008) 705-733).
    "PanCK": _surface(
        {
            "tumour": (1.0, 0.55, 0.55),
            "pneumocyte": (1.0, 0.4, 0.4),
            "columnar": (1.0, 0.6, 0.6),
            "flat": (1, 0.4, 0.3),
        },
        layers={"lining": 0.55},
    ),
    "proSPC": _surface({"pneumocyte": (0.9, 0.1, 0.75), "tumour": (0.75, 0.05, 0.5)}, granular=0.5),
    "Cc10": _surface({"columnar": (0.5, 0.1, 0.8)}, granular=0.4),
    # Cytoplasm of glands and carcinoma, nuclei of carcinoma (Al-Nomani et al., Pathol Res Pract 211 (2015)
    # 171-174), myofibroblasts (Gullotti et al., Lab Invest 91 (2011) 1695-1705); no membranes.
    "FHL2": Programme(
        pattern="membranous",
        cells={
            "tumour": Bound(share=1.0, nucleus=0.35, cytoplasm=0.55),
            "columnar": Bound(share=1.0, cytoplasm=0.6),
            "myofibroblast": Bound(share=0.6, cytoplasm=0.45),
        },
    ),
    "Podocin": _surface({"flat": (0.5, 0.5, 0.2)}),
    # endothelial; D2-40 (podoplanin) also stains type I pneumocytes (Williams et al., Am J Respir Cell Mol
    # Biol 14 (1996) 577-585), and alveolar septa have no lymphatics (Schraufnagel, Pathophysiology 17 (2010)
    # 337-343)
    "CD34": Programme(
        pattern="endothelial",
        cells={"endothelium": Bound(share=0.95, membrane=0.5, cytoplasm=0.5)},
        layers={"endothelium": 1.0},
    ),
    "CD31": Programme(
        pattern="endothelial",
        cells={"endothelium": Bound(share=0.95, membrane=0.45, cytoplasm=0.4)},
        layers={"endothelium": 0.9},
    ),
    "D2-40": Programme(
        pattern="endothelial",
        cells={
            "lymphatic": Bound(share=0.95, membrane=0.5, cytoplasm=0.45),
            "flat": Bound(share=0.95, membrane=0.4, cytoplasm=0.35),
        },
        layers={"lymphatic": 1.0, "lining": 0.6},
    ),
    # stromal
    "FAP": Programme(
        pattern="stromal",
        cells={
            "myofibroblast": Bound(share=0.9, membrane=0.4, cytoplasm=0.6),
            "fibroblast": Bound(share=0.25, cytoplasm=0.35),
        },
        layers={"collagen": 0.16},
    ),
    "SMA": Programme(
        pattern="stromal",
        cells={"myofibroblast": Bound(share=0.97, membrane=0.5, cytoplasm=0.85)},
        layers={"muscle": 1.0, "collagen": 0.10},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The staining of tumour cells that a dataset's label prescribes; None means that the case decides."""

    share: float | None = None  # share of the tumour cells that stain; exact, not a probability for each cell
    strength: float = 1.0  # factor of their absorbance
    complete: float = 1.0  # share of the membranes' area that stains
    centre: bool | None = None  # whether the cell in the middle of the field stains


# HER2 scores by membrane staining: 0 none, 1+ faint and incomplete, 2+ weak to moderate and complete, 3+
# strong and complete (Wolff et al. 2018, ASCO/CAP guideline update, J Clin Oncol 36:2105-2122).
HER2_READINGS: dict[str, Reading] = {
    "0": Reading(share=0.03, strength=0.15, complete=0.3),
    "1+": Reading(share=0.55, strength=0.28, complete=0.5),
    "2+": Reading(share=0.85, strength=0.55, complete=0.85),
    "3+": Reading(share=0.98, strength=1.15, complete=1.0),
}


def chromogen(
    scene: Scene, biomarker: str, biology: Biology, rng: np.random.Generator, reading: Reading | None = None
) -> Map:
    """Absorbance (S, S) of the chromogen of `biomarker` in `scene`, without unspecific staining."""
    programme = PROGRAMMES[biomarker]
    reading = reading or Reading()
    maps, grain = scene.maps, np.clip(1 + programme.granular * 2.0 * scene.texture[1], 0.15, 2.5)
    nucleus, membrane, cytoplasm = _per_cell(scene, biomarker, programme, biology, rng, reading)
    off_nucleus = 1 - maps.nucleus
    broken = maps.membrane
    if reading.complete < 1:
        field = noise(rng, scene.grid, 3.0)[0]
        broken = broken * step(field - np.quantile(field, 1 - reading.complete), 0.5)
    total = maps.nucleus * nucleus[maps.nucleus_owner] * (1 + 0.18 * scene.texture[0])
    total += maps.body * off_nucleus * cytoplasm[maps.body_owner] * grain
    total += broken * (1 - 0.6 * maps.nucleus) * membrane[maps.body_owner]
    for layer, amount in programme.layers.items():
        total += amount * scene.layers[layer] * (1 - 0.8 * maps.nucleus) * (1 + 0.1 * scene.texture[1])
    return np.clip(total, 0, 2.2).astype(np.float32)


def _per_cell(
    scene: Scene,
    biomarker: str,
    programme: Programme,
    biology: Biology,
    rng: np.random.Generator,
    reading: Reading,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Absorbances of the nucleus, the membrane and the cytoplasm of each cell, float32 (N,) each."""
    share, nucleus, membrane, cytoplasm = (np.zeros(len(NAMES), np.float32) for _ in range(4))
    for kind, bound in programme.cells.items():
        row, graded = NAMES.index(kind), kind == "tumour"
        own = biology.positive.get(biomarker, 0.5) if bound.share is None else bound.share
        share[row] = reading.share if graded and reading.share is not None else own
        strength = reading.strength if graded else 1.0
        nucleus[row], membrane[row] = bound.nucleus * strength, bound.membrane * strength
        cytoplasm[row] = bound.cytoplasm * strength
    kinds = scene.cells.kind
    stained = rng.random(len(kinds)) < share[kinds]
    if reading.share is not None:
        tumour = rng.permutation(np.flatnonzero(kinds == NAMES.index("tumour")))
        stained[tumour] = np.arange(len(tumour)) < round(reading.share * len(tumour))
    if reading.centre is not None and scene.centre is not None:
        stained[scene.centre] = reading.centre
    of_cell = (stained * rng.lognormal(0, 0.25, len(kinds))).astype(np.float32)
    return nucleus[kinds] * of_cell, membrane[kinds] * of_cell, cytoplasm[kinds] * of_cell
