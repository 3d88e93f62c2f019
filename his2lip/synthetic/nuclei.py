"""Generated patches around nuclei, to train for real images: each case has its own scanner, scale and stain.

The twins imitate one scanner per dataset. Here every case draws its own, so that a model cannot rely on any.
The stains of `select` and `test` are further from the published ones than those of `train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from his2lip.synthetic.biomarkers import Reading
from his2lip.synthetic.cases import draw_staining, keyed_rng
from his2lip.synthetic.rows import TwinRow
from his2lip.synthetic.scanners import Scanner
from his2lip.synthetic.twin_plans import DETAIL, TwinPlan

CASES = {"train": 160, "select": 16, "test": 16}
EACH = 8  # patches per class and case
_FINEST, _COARSEST = 0.28, 0.62  # microns per pixel
_OTHER_HUE = 0.06  # standard deviation of the additional shift of the stains' vectors of `select` and `test`
# Class -> tissue types of the scenes, used in turn. Only the first two have a tumour cell in the middle.
_SCENES = {
    "brown-nucleus": ("Tumor",),
    "blue-nucleus": ("Tumor",),
    "no-tumour": ("Stroma", "Stroma", "Immune cells", "Stroma", "Other", "Stroma", "Necrosis", "Stroma"),
}


def nuclei(plan: TwinPlan) -> Iterator[TwinRow]:
    """Ki67: patches around stained and unstained nuclei of a carcinoma, and patches without one."""
    for split, count in CASES.items():
        for case in range(plan.count(count)):
            name = f"{split}{case:04d}"
            rng = keyed_rng(plan.seed, plan.name, name, "appearance")
            scanner, staining = _scanner(rng), _staining(plan, split, name, rng)
            mpp = float(np.exp(rng.uniform(np.log(_FINEST), np.log(_COARSEST))))
            biology = (("size", float(rng.uniform(0.8, 1.3))), ("cohesion", float(rng.uniform(0.6, 0.98))))
            for label, scenes in _SCENES.items():
                for k in range(EACH):
                    shows = scenes[k % len(scenes)]
                    is_tumour = label != "no-tumour"
                    columns: dict[str, Any] = {"tissue": shows, "label": label, "biomarker": "Ki67"}
                    yield plan.row(
                        split, name, "Ki67", f"{split}/{name}/{label}-{k}.png", shows=shows, marker="Ki67",
                        size=DETAIL, mpp=mpp, biology=biology, staining=staining, scanner=scanner,
                        centre="tumour" if is_tumour else None,
                        reading=Reading(centre=label == "brown-nucleus") if is_tumour else None,
                        columns=columns | {"case_id": name, "slide_id": name, "mpp": mpp},
                    )  # fmt: skip


def _scanner(rng: np.random.Generator) -> Scanner:
    white = np.clip(rng.uniform(0.86, 0.98) + rng.normal(0, 0.015, 3), 0.8, 0.99)
    return Scanner(
        white=(float(white[0]), float(white[1]), float(white[2])),
        blur=float(rng.uniform(0.3, 1.0)),
        sharpen=float(rng.uniform(0, 0.7)),
        noise=float(rng.uniform(0.004, 0.016)),
        gamma=float(rng.uniform(0.85, 1.25)),
        saturation=float(rng.uniform(0.75, 1.25)),
        jpeg=int(rng.integers(60, 95)),
    )


def _staining(plan: TwinPlan, split: str, case: str, rng: np.random.Generator) -> tuple[tuple[str, Any], ...]:
    """The fields of SlideStaining: they vary more than between the slides of the twins."""
    hue = keyed_rng(plan.seed, plan.name, case, "hue of the chromogen")
    drawn = draw_staining(rng, hue)
    further = rng.normal(0, _OTHER_HUE, (3, 3)) if split != "train" else 0.0
    look = replace(
        drawn,
        haze=float(rng.uniform(0, 0.2)),
        wash=float(rng.uniform(0, 0.25)),
        chromogen=float(rng.uniform(0.5, 1.7)),
        counterstain=float(rng.uniform(0.5, 1.9)),
        tilts=drawn.tilts + further,
    )
    return tuple((name, getattr(look, name)) for name in look.__slots__)
