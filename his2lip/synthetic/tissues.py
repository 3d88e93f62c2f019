"""Builds the scene of a field of each of the seven tissue types, from cells and structures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from his2lip.synthetic.cases import Biology
from his2lip.synthetic.cells import lattice
from his2lip.synthetic.grid import Grid, Map, dots, noise, step
from his2lip.synthetic.scene import Canvas, Scene
from his2lip.synthetic.structures import (
    carbon,
    cartilage,
    debris,
    fibres,
    red_cells,
    septa,
    spindle_cells,
    vessel,
)


def build(
    tissue: str, grid: Grid, rng: np.random.Generator, biology: Biology, *, centre: str | None = None
) -> Scene:
    """The scene of a field of `tissue`, a canonical tissue type.

    centre  kind (cells.KINDS) of one cell that is placed in the middle of the field
    """
    canvas = Canvas.blank(grid, rng, biology.size)
    _BUILDERS[tissue](canvas, biology)
    if centre is not None:
        canvas.centre_on(centre)
    return canvas.finish()


def _tumour(canvas: Canvas, biology: Biology) -> None:
    """Nests of carcinoma with some stroma between them, lumens in some tumours, and a few lymphocytes."""
    grid, rng = canvas.grid, canvas.rng
    share = (
        float(np.clip(rng.normal(biology.cohesion, 0.10), 0.7, 1.0)) if grid.span < 60 else biology.cohesion
    )
    nest = _region(canvas, share, scale=13.0)
    _stroma_between(canvas, 1 - nest, biology)
    if rng.random() < biology.glands:
        _glands(canvas, nest)
    points = lattice(rng, grid, 12.6 * biology.spacing * biology.size, jitter=0.17)
    points = points[canvas.free(points) & (grid.sample(nest, points) > 0.5)]
    lymphocyte = rng.random(len(points)) < biology.infiltrate
    canvas.add(list(np.where(lymphocyte, "T", "tumour")), points)


def _region(canvas: Canvas, share: float, scale: float) -> Map:
    """A soft mask over about `share` of the field, whose borders vary over `scale` microns."""
    if share >= 0.97:
        return np.ones_like(canvas.tissue)
    field = noise(canvas.rng, canvas.grid, scale)[0]
    return step(field - np.quantile(field, 1 - share), 0.35)


def _stroma_between(canvas: Canvas, where: Map, biology: Biology) -> None:
    """Stroma around nests: fibres, spindle cells and, in some fields, a capillary."""
    if where.max() < 0.5:
        return
    grid, rng = canvas.grid, canvas.rng
    angle = fibres(canvas, where)
    if rng.random() < 0.55:
        row, column = np.unravel_index(
            int(rng.choice(np.flatnonzero(where > 0.9 * where.max()))), where.shape
        )
        spot = (float(grid.axis[column]), float(grid.axis[row]))
        vessel(canvas, spot, rng.uniform(1.6, 3.0), lymph=rng.random() < 0.35)
    _spindles(canvas, angle, where, biology, 9.0)


def _spindles(canvas: Canvas, angle: Map, where: Map, biology: Biology, spacing: float) -> None:
    active = biology.activated
    share = [0.92 * (1 - active), 0.92 * active, 0.05, 0.03]
    spindle_cells(canvas, angle, ["fibroblast", "myofibroblast", "T", "macrophage"], share, spacing, where)


def _glands(canvas: Canvas, nest: Map) -> None:
    """Lumens inside nests."""
    grid, rng = canvas.grid, canvas.rng
    points = lattice(rng, grid, 34.0, jitter=0.2)
    points = points[grid.sample(nest, points) > 0.9]
    if len(points) == 0:
        return
    radius = rng.uniform(3.0, 6.0, len(points)).astype(np.float32)
    hole = step(dots(grid, points, radius, np.ones(len(points), np.float32)) - 0.4, 0.2)
    canvas.tissue *= 1 - 0.95 * hole
    canvas.holes += [(float(x), float(y), float(r) + 4.0) for (x, y), r in zip(points, radius, strict=True)]


# Shares of (T, B, plasma, macrophage): a T zone, a follicle, a plasma-cell infiltrate, a mixed infiltrate.
_INFILTRATES = (
    (0.78, 0.1, 0.04, 0.08),
    (0.12, 0.78, 0.04, 0.06),
    (0.2, 0.1, 0.6, 0.1),
    (0.45, 0.3, 0.15, 0.1),
)


def _immune(canvas: Canvas, biology: Biology) -> None:
    """Dense lymphocytes with plasma cells and macrophages and, in some fields, a small vessel."""
    grid, rng = canvas.grid, canvas.rng
    fibres(canvas, 0.35)
    if rng.random() < 0.3:
        spot = rng.uniform(0.15, 0.85, 2) * grid.span
        vessel(canvas, (float(spot[0]), float(spot[1])), rng.uniform(1.8, 3.5), lymph=rng.random() < 0.3)
    mix = np.array(_INFILTRATES[rng.integers(len(_INFILTRATES))])
    spacing = rng.uniform(6.7, 8.0) * biology.size * biology.spacing * (1 + 0.25 * mix[2])
    points = lattice(rng, grid, spacing, jitter=0.15)
    points = points[canvas.free(points) & (rng.random(len(points)) < 0.96)]
    canvas.add(list(rng.choice(["T", "B", "plasma", "macrophage"], len(points), p=mix)), points)


def _stroma(canvas: Canvas, biology: Biology) -> None:
    """Collagen with spindle cells along its fibres, and blood and lymphatic vessels."""
    grid, rng = canvas.grid, canvas.rng
    angle = fibres(canvas)
    count = rng.poisson(1.1 * max(1.0, (grid.span / 43) ** 2))
    for spot in rng.uniform(0.12, 0.88, (count, 2)) * grid.span:
        lymph = bool(rng.random() < 0.45)
        wall = 0.0 if lymph or rng.random() < 0.6 else rng.uniform(1.5, 3.5)
        vessel(canvas, (float(spot[0]), float(spot[1])), rng.uniform(2.0, 4.6), lymph=lymph, muscle=wall)
    _spindles(canvas, angle, np.ones_like(canvas.tissue), biology, rng.uniform(9.5, 13.0) * biology.spacing)


def _necrosis(canvas: Canvas, biology: Biology) -> None:
    """Granular debris with pale ghost nuclei, shrunken dark (pyknotic) nuclei and a few macrophages."""
    grid, rng = canvas.grid, canvas.rng
    debris(canvas)
    points = lattice(rng, grid, 11.0 * biology.spacing, jitter=0.25)
    share = [0.42, 0.10, 0.02, 0.46]
    kinds = rng.choice(["ghost", "pyknotic", "macrophage", ""], len(points), p=share)
    canvas.add(list(kinds[kinds != ""]), points[kinds != ""])
    crumbs = rng.uniform(0, grid.span, (rng.poisson(0.012 * grid.span**2), 2)).astype(np.float32)
    dust = dots(
        grid, crumbs, rng.uniform(0.4, 1.0, len(crumbs)).astype(np.float32), np.ones(len(crumbs), np.float32)
    )
    canvas.lay("debris", np.minimum(2.2 * dust, 2.4))


def _alveoli(canvas: Canvas, biology: Biology) -> None:
    """Thin walls between air spaces, with pneumocytes and capillaries; some air spaces have a macrophage."""
    rng = canvas.rng
    thickness = rng.uniform(3.0, 8.5)
    points, angle = septa(canvas, thickness)
    kinds = list(rng.choice(["pneumocyte", "flat", "endothelium"], len(points), p=[0.4, 0.35, 0.25]))
    canvas.add(kinds, points, angle)
    if rng.random() < 0.4:
        air = np.argwhere(canvas.tissue < 0.05)
        if len(air):
            row, column = air[rng.integers(len(air))]
            spot = np.array([[canvas.grid.axis[column], canvas.grid.axis[row]]], np.float32)
            canvas.add(["macrophage"], spot)


def _background(canvas: Canvas, biology: Biology) -> None:
    """Glass, in some fields with dust or a faint smear of mucus."""
    grid, rng = canvas.grid, canvas.rng
    canvas.tissue[:] = 0
    if rng.random() < 0.4:
        count = int(rng.integers(1, 5))
        points = rng.uniform(0, grid.span, (count, 2)).astype(np.float32)
        weight = rng.uniform(0.2, 0.8, count).astype(np.float32)
        canvas.lay("dirt", dots(grid, points, rng.uniform(0.5, 1.6, count).astype(np.float32), weight))
    if rng.random() < 0.35:
        canvas.lay("mucus", 0.25 * step(noise(rng, grid, 16.0)[0] - 0.6, 1.5))


def _other(canvas: Canvas, biology: Biology) -> None:
    """Tissue of no other class: blood, cartilage, anthracotic tissue or bronchial epithelium."""
    _OTHERS[canvas.rng.integers(len(_OTHERS))](canvas, biology)


def _blood(canvas: Canvas, biology: Biology) -> None:
    canvas.tissue[:] = 0.1
    red_cells(canvas, np.ones_like(canvas.tissue), density=canvas.rng.uniform(0.75, 1.0))
    if canvas.rng.random() < 0.3:
        canvas.add(["T"], (canvas.rng.uniform(0.1, 0.9, (1, 2)) * canvas.grid.span).astype(np.float32))


def _cartilage(canvas: Canvas, biology: Biology) -> None:
    cartilage(canvas)


def _anthracosis(canvas: Canvas, biology: Biology) -> None:
    angle = fibres(canvas)
    carbon(canvas, int(canvas.rng.integers(3, 6) * max(1.0, (canvas.grid.span / 43) ** 2)))
    _spindles(canvas, angle, np.ones_like(canvas.tissue), biology, 14.0)


def _bronchus(canvas: Canvas, biology: Biology) -> None:
    """Ciliated epithelium between air and stroma: tall nuclei next to each other on a basement membrane."""
    grid, rng = canvas.grid, canvas.rng
    turn = rng.uniform(0, 2 * np.pi)
    across = np.array([np.cos(turn), np.sin(turn)], np.float32)
    along = np.array([-across[1], across[0]], np.float32)
    x, y = canvas.xy
    height = rng.uniform(17.0, 21.0)
    wave = 1.5 * noise(rng, grid, 14.0)[0]
    middle = (across @ np.full(2, grid.span / 2)) + rng.uniform(-0.12, 0.12) * grid.span
    level = across[0] * x + across[1] * y - middle + wave + height / 2  # microns above the basement membrane
    base = step(-level, 1.0)
    angle = fibres(canvas, base)
    canvas.tissue = np.maximum(step(height - level, 1.2), 0.0)
    cilia = step(level - height, 0.8) * step(height + 3.0 - level, 1.5)
    canvas.lay("mucus", 0.8 * cilia * (0.5 + 0.5 * step(noise(rng, grid, 0.9)[0], 1.0)))
    steps = np.arange(-0.8 * grid.span, 0.8 * grid.span, 4.6 * biology.size)
    rows = rng.choice([0.3, 0.5, 0.62], len(steps)) * height
    place = (
        along * (steps + along @ np.full(2, grid.span / 2))[:, None]
        + across * (middle - height / 2 + rows)[:, None]
    )
    inside = np.abs(place - grid.span / 2).max(1) < grid.span / 2 + 8
    tilt = np.full(int(inside.sum()), turn, np.float32)
    canvas.add(["columnar"] * len(tilt), place[inside].astype(np.float32), tilt)
    _spindles(canvas, angle, base, biology, 10.0)


_Builder = Callable[[Canvas, Biology], None]
_OTHERS: tuple[_Builder, ...] = (_blood, _cartilage, _anthracosis, _bronchus)
_BUILDERS: dict[str, _Builder] = {
    "Alveoli": _alveoli,
    "Background": _background,
    "Immune cells": _immune,
    "Necrosis": _necrosis,
    "Other": _other,
    "Stroma": _stroma,
    "Tumor": _tumour,
}
