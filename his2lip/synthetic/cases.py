"""How cases and slides vary: biology, strength and hue of stains, illumination."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def keyed_rng(*key: str | int) -> np.random.Generator:
    """A random generator that depends only on `key`, not on the process or on earlier draws."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Biology:
    """The tissue of one case. `size` and `spacing` are factors about 1; the rest are fractions in 0..1."""

    size: float = 1.0  # of the radii of nuclei
    spacing: float = 1.0  # of the distances between cells
    cohesion: float = 0.9  # share of a tumour field that is covered by tumour nests
    glands: float = 0.3  # probability that the nests of a field have lumens
    infiltrate: float = 0.04  # share of lymphocytes among the cells of a nest
    activated: float = 0.4  # share of the fibroblasts that are myofibroblasts (FAP+, SMA+)
    positive: dict[str, float] = field(default_factory=dict)  # biomarker -> share of stained tumour nuclei


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideStaining:
    """The staining and illumination of one slide."""

    counterstain: float = 1.0  # factor of the absorbance of haematoxylin
    chromogen: float = 1.0  # factor of the absorbance of DAB or AEC
    eosin: float = 1.0  # factor of the absorbance of eosin
    haze: float = 0.0  # absorbance of chromogen on all tissue
    wash: float = 0.0  # absorbance of haematoxylin on all tissue
    # (3, 3): shifts (data.images.tilt) of the vectors of haematoxylin, chromogen and eosin, in R, G, B.
    tilts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))
    thickness: float = 1.0  # of the section: a factor of all absorbances
    uneven: float = 0.0  # standard deviation of the logarithm of absorbances between fields of the slide
    light: float = 1.0  # factor of the lamp or the exposure
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of red, green and blue light


NOMINAL_BIOLOGY = Biology()
NOMINAL_STAINING = SlideStaining()


# Beta distribution of Ki67, the share of stained tumour nuclei of a case (parameters). Breast: mean 21 %,
# so that cases lie on both sides of the cuts in use, 14 % (Cheang et al., J Natl Cancer Inst 101 (2009)
# 736-750) and 20 %. Elsewhere: mean 40 %, as in non-small-cell lung cancer (Warth et al., Br J Cancer 111
# (2014) 1222-1229: 40.7 %).
_KI67 = {"breast": (1.3, 5.0)}
_KI67_ELSEWHERE = (1.6, 2.4)
# Share of the ER-negative cases that may be PR-positive; ER-/PR+ is 1-4 % of all cases, and rarely confirmed
# (Hefti et al., Breast Cancer Res 15 (2013) R68).
_PR_WITHOUT_ER = 0.03


def draw_biology(rng: np.random.Generator, organ: str = "lung") -> Biology:
    """A random case of a tumour of an organ.

    P53 is null, wild type or mutant, with 0, 25 or 85 % of stained nuclei. ER is negative, or positive in
    most nuclei; PR is rarely positive without it. The other shares are drawn independently.
    """
    p53 = float(rng.choice([0.0, 0.25, 0.85], p=[0.15, 0.35, 0.5]))
    er, pr = float(rng.choice([0.0, 0.7, 0.95], p=[0.25, 0.25, 0.5])), float(rng.choice([0.0, 0.3, 0.8]))
    if er == 0 and rng.random() >= _PR_WITHOUT_ER:
        pr = 0.0
    return Biology(
        size=float(rng.normal(1.0, 0.06)),
        spacing=float(rng.normal(1.0, 0.07)),
        cohesion=float(rng.uniform(0.78, 0.98)),
        glands=float(rng.choice([0.05, 0.5])),
        infiltrate=float(rng.uniform(0.01, 0.06)),
        activated=float(rng.uniform(0.25, 0.9)),
        positive={
            "Ki67": float(rng.beta(*_KI67.get(organ, _KI67_ELSEWHERE))),
            "P53": p53,
            "Cyclin-D1": float(rng.beta(2, 2)),
            "CDK4": float(rng.beta(2.5, 1.5)),
            "ER": er,
            "PR": pr,
        },
    )


# Standard deviation of the chromogen's unit vector between cases, in each of R, G and B: two cases differ by
# 6 degrees on average. AEC and DAB are 9 degrees apart, less than the DAB of two laboratories
# (docs/datasets.md), so that unmixing with one published vector is no longer exact on generated patches.
_HUE_OF_CASE = 0.05


def draw_staining(rng: np.random.Generator, of_case: np.random.Generator | None = None) -> SlideStaining:
    """A random slide. Slides vary so widely that the colour of a patch does not reveal its tissue type.

    of_case  a generator in a state that all slides of a case share: their chromogen has one hue; None: the
             published hue
    """
    hue = np.zeros(3) if of_case is None else of_case.normal(0, _HUE_OF_CASE, 3)
    return SlideStaining(
        counterstain=float(np.clip(rng.lognormal(0.0, 0.32), 0.5, 1.8)),
        chromogen=float(np.clip(rng.lognormal(0.0, 0.22), 0.55, 1.6)),
        eosin=float(np.clip(rng.lognormal(0.0, 0.2), 0.6, 1.5)),
        haze=float(np.clip(rng.exponential(0.04), 0.0, 0.14)),
        wash=float(np.clip(rng.exponential(0.035), 0.0, 0.10)),
        tilts=rng.normal(0, [[0.05] * 3, [0.025] * 3, [0.03] * 3]) + np.outer([0, 1, 0], hue),
        thickness=float(np.clip(rng.lognormal(0.0, 0.1), 0.75, 1.3)),
        uneven=0.16,
        light=float(rng.uniform(0.92, 1.02)),
        tint=_triple(rng.normal(1.0, 0.011, 3)),
    )


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
