"""Structures that several tissues have: fibres, vessels, alveolar septa, debris, cartilage, blood, carbon."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from his2lip.synthetic.cells import lattice
from his2lip.synthetic.grid import Map, band, dots, noise, step
from his2lip.synthetic.scene import Canvas, Points


def fibres(canvas: Canvas, where: Map | float = 1.0) -> Map:
    """Adds wavy collagen fibres, in proportion to `where` (0..1). Returns their angle (S, S) in radians."""
    grid, rng = canvas.grid, canvas.rng
    turn = rng.uniform(0, np.pi)
    wave = noise(rng, grid, 14.0, 2)
    axis = grid.axis
    phase = np.cos(turn) * axis[None, :] + np.sin(turn) * axis[:, None] + 3.2 * wave[0]
    width = rng.uniform(2.2, 3.6)
    fine = 0.8 * noise(rng, grid, 6.0)[0]
    strands = 0.5 + 0.5 * np.sin(2 * np.pi * (phase + fine) / width)
    bundles = 0.5 + 0.5 * np.sin(2 * np.pi * (phase + 0.4 * fine) / (3.3 * width) + wave[1])
    canvas.lay("collagen", (0.15 + 0.5 * strands * strands + 0.35 * bundles).astype(np.float32) * where)
    down, across = np.gradient(phase, grid.mpp)
    return np.arctan2(down, across) + np.pi / 2


def spindle_cells(
    canvas: Canvas, angle: Map, kinds: list[str], share: list[float], spacing: float, where: Map
) -> None:
    """Adds spindle cells along the fibres, where `where` exceeds 0.5.

    angle    (S, S), of the fibres, in radians
    share    probability of each of `kinds`
    spacing  distance between the cells in microns
    """
    rng = canvas.rng
    points = lattice(rng, canvas.grid, spacing, jitter=0.3)
    points = points[canvas.free(points) & (canvas.grid.sample(where, points) > 0.5)]
    turn = canvas.grid.sample(angle, points) + rng.normal(0, 0.12, len(points))
    canvas.add(list(rng.choice(kinds, len(points), p=share)), points, turn.astype(np.float32))


def vessel(
    canvas: Canvas, centre: tuple[float, float], radius: float, *, lymph: bool = False, muscle: float = 0.0
) -> None:
    """Adds the cross-section of a vessel: a lumen, an endothelium with flat nuclei, and blood in some.

    centre, radius  in microns
    lymph           a lymphatic vessel, without blood, in place of a blood vessel
    muscle          thickness of the muscular wall in microns; 0: none
    """
    rng = canvas.rng
    squeeze, turn = rng.uniform(1.0, 1.9), rng.uniform(0, np.pi)
    x, y = canvas.xy
    dx, dy = x - centre[0], y - centre[1]
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, -np.sin(turn) * dx + np.cos(turn) * dy
    long, short = radius * np.sqrt(squeeze), radius / np.sqrt(squeeze)
    outside = (np.sqrt((u / long) ** 2 + (v / short) ** 2) - 1) * short
    lumen = step(-outside, 0.8)
    canvas.layers["collagen"] *= 1 - step(1.5 - outside, 1.5)
    canvas.tissue *= 1 - lumen
    inside = step(-outside - 0.8, 0.8)
    canvas.lumen = inside if canvas.lumen is None else np.maximum(canvas.lumen, inside)
    canvas.lay("lymphatic" if lymph else "endothelium", band(outside - 0.6, 0.85))
    if muscle:
        canvas.lay("muscle", step(outside - 1.2, 0.8) * step(1.2 + muscle - outside, 0.8))
    canvas.groups = [g.take(_beyond(g.body, centre, long + 2.5)) for g in canvas.groups]
    canvas.holes.append((*centre, long + 2.5))
    _rim_nuclei(canvas, "lymphatic" if lymph else "endothelium", centre, (long, short), turn)
    if not lymph and rng.random() < 0.6:
        red_cells(canvas, step(-outside - 1.5, 0.8), density=0.5)


def _beyond(points: Points, centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    return np.hypot(points[:, 0] - centre[0], points[:, 1] - centre[1]) > radius


def _rim_nuclei(
    canvas: Canvas, kind: str, centre: tuple[float, float], half: tuple[float, float], turn: float
) -> None:
    """One to six flat endothelial nuclei around the lumen.

    half  half axes of the lumen in microns; turn: its angle in radians
    """
    count = int(np.clip(canvas.rng.poisson(0.35 * (half[0] + half[1])), 1, 6))
    at = np.linspace(0, 2 * np.pi, count, endpoint=False) + canvas.rng.uniform(0, 6.3, 1)
    at = at + canvas.rng.normal(0, 0.25, count)
    c, s = np.cos(turn), np.sin(turn)
    px, py = (half[0] + 0.9) * np.cos(at), (half[1] + 0.9) * np.sin(at)
    tx, ty = -half[0] * np.sin(at), half[1] * np.cos(at)
    points = np.stack([centre[0] + c * px - s * py, centre[1] + s * px + c * py], -1)
    angle = np.arctan2(s * tx + c * ty, c * tx - s * ty)
    canvas.add([kind] * count, points.astype(np.float32), angle.astype(np.float32))


def red_cells(canvas: Canvas, where: Map, density: float = 1.0) -> None:
    """Adds red blood cells where `where` (0..1) is 1: 6 to 7 microns wide, pale in the middle, no nucleus.

    density  share of the places that have a cell
    """
    grid, rng = canvas.grid, canvas.rng
    points = lattice(rng, grid, 7.0, jitter=0.15)
    points = points[rng.random(len(points)) < density]
    ring = np.zeros_like(where)
    if len(points):
        count = len(points)
        disc = dots(grid, points, rng.uniform(2.8, 3.2, count).astype(np.float32), np.ones(count, np.float32))
        dip = dots(
            grid, points, np.full(count, 1.6, np.float32), rng.uniform(0.25, 0.6, count).astype(np.float32)
        )
        ring = step(disc - 0.47, 0.2) * (1 - dip)
    canvas.lay("red", (ring * where).astype(np.float32))
    np.maximum(canvas.tissue, ring * where * 0.9, out=canvas.tissue)


def septa(canvas: Canvas, thickness: float) -> tuple[Points, Points]:
    """Adds alveolar walls, `thickness` microns thick, between air spaces.

    Returns points (N, 2) on the walls, and the angles (N,) of the walls at these points, in radians.
    """
    grid, rng = canvas.grid, canvas.rng
    x, y = canvas.xy
    spacing = max(24.0, 0.9 * grid.span) if grid.span < 60 else 38.0
    seeds = lattice(rng, grid, spacing, jitter=0.25)
    slow = noise(rng, grid, 12.0, 2)
    px, py = x + 2.6 * slow[0], y + 2.6 * slow[1]
    distance = np.hypot(px[..., None] - seeds[:, 0], py[..., None] - seeds[:, 1])
    nearest = np.partition(distance, 1, axis=-1)
    apart = (nearest[..., 1] - nearest[..., 0]) / 2
    apart = apart - 0.12 * thickness * noise(rng, grid, 7.0)[0]
    wall = step(thickness / 2 - apart, 1.0)
    down, across = np.gradient(apart, grid.mpp)
    angle = np.arctan2(down, across) + np.pi / 2
    rows, columns = np.nonzero(apart < 0.22 * thickness)
    pick = rng.permutation(len(rows))[:150]
    points = np.stack([grid.axis[columns[pick]], grid.axis[rows[pick]]], -1)
    points = thin(points, rng.uniform(6.0, 10.0))
    canvas.tissue = wall
    side = band(apart - 0.30 * thickness, 0.9) * wall
    vessels = step(noise(rng, grid, 5.0)[0] + 0.4, 0.8)
    canvas.lay("endothelium", (side * vessels).astype(np.float32))
    red_cells(canvas, vessels * step(0.22 * thickness - apart, 0.8), density=0.5)
    canvas.lay("lining", (band(apart - 0.5 * thickness, 0.7) * step(wall - 0.2, 0.3)).astype(np.float32))
    canvas.lay("collagen", (0.3 * wall).astype(np.float32))
    return points, grid.sample(angle.astype(np.float32), points)


def thin(points: Points, apart: float) -> Points:
    """The `points` (N, 2), in their order, that are at least `apart` microns from all points kept before."""
    close = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) < apart
    blocked = np.zeros(len(points), bool)
    kept = np.zeros(len(points), bool)
    for i in range(len(points)):
        if not blocked[i]:
            kept[i] = True
            blocked |= close[i]
    return points[kept]


def debris(canvas: Canvas) -> None:
    """Adds necrotic debris: blurred and granular."""
    grid, rng = canvas.grid, canvas.rng
    slow, fine = noise(rng, grid, 6.0)[0], noise(rng, grid, 1.3)[0]
    grains = step(noise(rng, grid, 1.8)[0] - 0.7, 0.9)
    canvas.lay("debris", np.clip(0.45 + 0.16 * slow + 0.16 * fine + 0.55 * grains, 0, 1.3))
    clear = step(noise(rng, grid, 7.0)[0] - 1.25, 0.5)
    canvas.tissue *= 1 - 0.85 * clear


def carbon(canvas: Canvas, clumps: int) -> None:
    """Adds anthracotic pigment: clumps of black granules, smaller than a micron, in macrophages."""
    grid, rng = canvas.grid, canvas.rng
    heart = rng.uniform(0.1, 0.9, (clumps, 2)) * grid.span
    count = rng.integers(25, 70, clumps)
    host = np.repeat(heart, count, axis=0)
    points = (host + rng.normal(0, 2.6, host.shape)).astype(np.float32)
    weight = rng.uniform(0.3, 1.0, len(points)).astype(np.float32)
    radius = rng.uniform(0.3, 0.8, len(points)).astype(np.float32)
    canvas.lay("carbon", np.minimum(dots(grid, points, radius, weight), 1.6))
    canvas.add(["macrophage"] * clumps, (heart + rng.normal(0, 1.5, heart.shape)).astype(np.float32))


def cartilage(canvas: Canvas) -> None:
    """Adds hyaline cartilage: a matrix that is darker around lacunae with one or two chondrocytes."""
    grid, rng = canvas.grid, canvas.rng
    points = lattice(rng, grid, 14.5, jitter=0.2)
    pair = rng.random(len(points)) < 0.3
    turn = rng.uniform(0, 2 * np.pi, pair.sum())
    twin = points[pair] + 5.2 * np.stack([np.cos(turn), np.sin(turn)], -1)
    points = np.concatenate([points, twin]).astype(np.float32)
    radius = rng.uniform(3.4, 4.4, len(points)).astype(np.float32)
    ones = np.ones(len(points), np.float32)
    halo = dots(grid, points, radius * 1.9, ones)
    hole = step(dots(grid, points, radius, ones) - 0.42, 0.25)
    matrix = 0.5 + 0.5 * np.minimum(halo, 1) + 0.05 * noise(rng, grid, 8.0)[0]
    canvas.lay("matrix", (matrix * (1 - hole)).astype(np.float32))
    canvas.tissue *= 1 - 0.75 * hole
    canvas.add(["chondrocyte"] * len(points), points + rng.normal(0, 0.6, points.shape).astype(np.float32))
