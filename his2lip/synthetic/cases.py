"""The variation between cases and between slides: biology, staining strength, hue, illumination."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def keyed_rng(*key: str | int) -> np.random.Generator:
    """A generator that depends only on `key`: the same in any process, order or version of Python."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Biology:
    """One patient's tissue. Ratios about 1; fractions in 0..1."""

    size: float = 1.0  # of nuclei
    spacing: float = 1.0  # between cells
    cohesion: float = 0.9  # share of a tumour field that is tumour nest
    glands: float = 0.3  # chance that a nest has lumens
    infiltrate: float = 0.04  # lymphocytes among tumour cells
    activated: float = 0.4  # share of stroma that is FAP+ and SMA+ myofibroblasts
    positive: dict[str, float] = field(default_factory=dict)  # biomarker -> fraction of tumour nuclei stained


@dataclass(frozen=True, slots=True, kw_only=True)
class Staining:
    """One slide's staining: strengths ratios about 1, haze and wash absorbances, tilts shifts of hue."""

    counterstain: float = 1.0
    chromogen: float = 1.0
    eosin: float = 1.0
    haze: float = 0.0  # chromogen bound everywhere in tissue
    wash: float = 0.0  # haematoxylin left everywhere in tissue
    tilts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))
    thickness: float = 1.0  # of the section: all absorbances
    uneven: float = 0.0  # how far absorbances vary over the slide, standard deviation of their logarithm
    light: float = 1.0  # lamp or exposure
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


NOMINAL_BIOLOGY = Biology()
NOMINAL_STAINING = Staining()


def draw_biology(rng: np.random.Generator) -> Biology:
    """A patient. P53 is null, wild type or mutant; other nuclear markers have their own index."""
    p53 = float(rng.choice([0.0, 0.25, 0.85], p=[0.15, 0.35, 0.5]))
    return Biology(
        size=float(rng.normal(1.0, 0.06)),
        spacing=float(rng.normal(1.0, 0.07)),
        cohesion=float(rng.uniform(0.78, 0.98)),
        glands=float(rng.choice([0.05, 0.5])),
        infiltrate=float(rng.uniform(0.01, 0.06)),
        activated=float(rng.uniform(0.25, 0.9)),
        positive={
            "Ki67": float(rng.beta(2, 2.2)),
            "P53": p53,
            "Cyclin-D1": float(rng.beta(2, 2)),
            "CDK4": float(rng.beta(2.5, 1.5)),
            "ER": float(rng.choice([0.0, 0.7, 0.95])),
            "PR": float(rng.choice([0.0, 0.3, 0.8])),
        },
    )


def draw_staining(rng: np.random.Generator) -> Staining:
    """A slide: one run of the stainer, one section; varied so widely that colour does not tell the tissue."""
    return Staining(
        counterstain=float(np.clip(rng.lognormal(0.0, 0.32), 0.5, 1.8)),
        chromogen=float(np.clip(rng.lognormal(0.0, 0.22), 0.55, 1.6)),
        eosin=float(np.clip(rng.lognormal(0.0, 0.2), 0.6, 1.5)),
        haze=float(np.clip(rng.exponential(0.04), 0.0, 0.14)),
        wash=float(np.clip(rng.exponential(0.035), 0.0, 0.10)),
        tilts=rng.normal(0, [[0.05, 0.05, 0.05], [0.025, 0.025, 0.025], [0.03, 0.03, 0.03]]),
        thickness=float(np.clip(rng.lognormal(0.0, 0.1), 0.75, 1.3)),
        uneven=0.16,
        light=float(rng.uniform(0.92, 1.02)),
        tint=_triple(rng.normal(1.0, 0.011, 3)),
    )


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
