"""Trainings, or draws of a few-shot probe, that differ only in their seed, as one row: their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from his2lip.evaluation import CellResult, OverSeeds

ASKED_FOR = 5  # trainings; with fewer, how much seeds vary is hardly known
_LIMITS = ("ties", "cut_prompts", "in_domain", "overlap_units", "overlap_images", "overlap_cases")
_NO_MEAN = "the mean over datasets has no interval, since all datasets share the seeds"


def pooled(cells: Sequence[CellResult]) -> list[CellResult]:
    """`cells` with one row in place of those of several seeds, where the first of them was."""
    groups: dict[tuple[str, ...], list[CellResult]] = {}
    for number, cell in enumerate(cells):
        key = (cell.seeds_of or "", cell.dataset, cell.protocol, cell.split_sha256)
        groups.setdefault(key if cell.over_seeds else (str(number),), []).append(cell)
    return [_row(own) if own[0].over_seeds else own[0] for own in groups.values()]


def _difference(mean: OverSeeds | None) -> dict[str, Any]:
    """The fields of `Compared` that are about the reference, of a mean over trainings.

    It is not said to be no loss: its limits are for itself, and those of other rows for all pairs together.
    """
    return {
        "difference": None if mean is None else mean.difference,
        "difference_lo": None if mean is None else mean.difference_lo,
        "difference_hi": None if mean is None else mean.difference_hi,
        "non_inferior": None,
    }


def with_pooled_draws(cells: Sequence[CellResult]) -> list[CellResult]:
    """`cells` with one row for all draws of a few-shot probe, after the others."""
    few_shot = [cell for cell in cells if cell.is_few_shot]
    return [*(cell for cell in cells if not cell.is_few_shot), *pooled(few_shot)]


def _row(cells: Sequence[CellResult]) -> CellResult:
    """The record of all trainings: that of one of them, with the means in place of its own figures.

    Of what limits the figures, it has the most that any training has.
    """
    cell, seeds = cells[0], next(iter(cells[0].over_seeds.values())).seeds
    changes: dict[str, Any] = {name: found.mean for name, found in cell.over_seeds.items()}
    changes |= {f"{name}_lo": found.lo for name, found in cell.over_seeds.items()}
    changes |= {f"{name}_hi": found.hi for name, found in cell.over_seeds.items()}
    # These are of one training. `mean_interval` adds datasets as independent, and seeds are shared by them.
    changes |= {"chance_corrected_se": None, "chance_corrected_df": None}
    changes |= {"over_seeds": cell.over_seeds if cell.is_few_shot else {}}
    changes |= {name: max((getattr(c, name) for c in cells), key=lambda n: n or 0) for name in _LIMITS}
    ties = "; ties are those of the one with most" if changes["ties"] else ""
    if cell.is_few_shot:
        kind = "draws"
        caveat = f"{cell.caveat}; mean of {seeds} draws, intervals over cases and draws{ties}"
    else:
        kind = "seeds"
        caveat = f"mean of {seeds} trainings with other seeds; intervals are over cases and seeds{ties}"
        caveat += "" if cell.is_probe else f"; {_NO_MEAN}"
        caveat += f". At least {ASKED_FOR} are asked for" if seeds < ASKED_FOR else ""
        caveat = f"{cell.caveat}; {caveat}" if cell.is_probe else caveat
    compared = {
        name: found.model_copy(
            update={
                "top": False,  # one that is top by any of its seeds is chosen for its best seed
                "groups": "",
                **_difference(cell.over_seeds.get(name)),
            }
        )
        for name, found in cell.compared.items()
    }
    changes |= {"prompt_f1_median": None, "prompt_f1_lo": None, "prompt_f1_hi": None, "prompt_pools": {}}
    changes |= {"prompt_order": {}, "prompt_order_least": None, "order_depends_on_prompts": False}
    if cell.calibration is not None:
        changes |= {"calibration": None, "no_calibration": f"each of the {kind} has its own temperature"}
    changes |= {"compared": compared, "caveat": caveat}
    return cell.model_copy(update=changes | {"model": f"{cell.seeds_of} ({seeds} {kind})"})
