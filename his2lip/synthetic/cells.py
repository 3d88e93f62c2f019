"""Cells of a tissue: the looks of each kind, their positions, and maps of nuclei, bodies and membranes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from his2lip.synthetic.grid import Grid, Map, band, dots, step

Array = NDArray[np.float32]
BLOCK = 64  # pixels; patches are drawn in blocks of this side, so that memory stays small


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of cell. Lengths are in microns and amounts of stain in absorbance; the rest are ratios."""

    radius: float  # of the nucleus: geometric mean of its half axes
    spread: float  # relative standard deviation of the radius between cells
    aspect: float  # long half axis of the nucleus divided by its short half axis
    dark: float  # haematoxylin in the nucleus
    clump: float  # contrast of the chromatin texture
    rim: float = 0.0  # additional chromatin at the edge of the nucleus
    nucleoli: float = 0.0  # mean number of nucleoli
    body: float = 1.3  # size of the cell divided by that of the nucleus, along each axis
    offset: float = 0.0  # distance between the centres of nucleus and cell, in radii of the nucleus
    cytoplasm: float = 0.05  # haematoxylin in the cytoplasm


# Diameters of nuclei: lymphocytes 6 to 7 um, carcinoma 9 to 14 um. Fibroblasts are 15 to 20 um by 3 um.
KINDS: dict[str, Kind] = {
    "tumour": Kind(
        radius=5.2, spread=0.16, aspect=1.28, dark=0.29, clump=0.24, rim=0.55, nucleoli=1.3, body=1.55,
        cytoplasm=0.11,
    ),
    "T": Kind(radius=3.2, spread=0.08, aspect=1.12, dark=0.50, clump=0.32, body=1.30, cytoplasm=0.05),
    "B": Kind(radius=3.3, spread=0.09, aspect=1.10, dark=0.45, clump=0.30, body=1.30, cytoplasm=0.05),
    "plasma": Kind(
        radius=3.1, spread=0.08, aspect=1.10, dark=0.48, clump=0.50, rim=0.4, body=1.75, offset=0.55,
        cytoplasm=0.13,
    ),
    "macrophage": Kind(
        radius=3.7, spread=0.12, aspect=1.45, dark=0.30, clump=0.2, rim=0.3, nucleoli=0.4, body=2.1,
        offset=0.5,
    ),
    "fibroblast": Kind(
        radius=3.0, spread=0.16, aspect=5.2, dark=0.38, clump=0.2, body=1.3, cytoplasm=0.04
    ),
    "myofibroblast": Kind(
        radius=3.3, spread=0.15, aspect=4.4, dark=0.34, clump=0.2, body=1.6, cytoplasm=0.05
    ),
    "endothelium": Kind(radius=2.7, spread=0.12, aspect=3.2, dark=0.48, clump=0.2, body=1.2),
    "lymphatic": Kind(radius=2.7, spread=0.12, aspect=3.2, dark=0.48, clump=0.2, body=1.2),
    "pneumocyte": Kind(radius=3.1, spread=0.13, aspect=1.5, dark=0.44, clump=0.2, nucleoli=0.3, body=1.4),
    "flat": Kind(radius=2.7, spread=0.12, aspect=3.0, dark=0.46, clump=0.2, body=1.2),
    "columnar": Kind(
        radius=3.4, spread=0.1, aspect=2.0, dark=0.44, clump=0.2, nucleoli=0.4, body=1.5, cytoplasm=0.08
    ),
    "chondrocyte": Kind(radius=2.4, spread=0.15, aspect=1.4, dark=0.5, clump=0.1, body=2.0, cytoplasm=0.02),
    "ghost": Kind(radius=4.4, spread=0.18, aspect=1.25, dark=0.09, clump=0.3, rim=0.7, body=1.4),
    "pyknotic": Kind(radius=1.7, spread=0.35, aspect=1.3, dark=0.72, clump=0.05, body=1.6),
}  # fmt: skip
NAMES: tuple[str, ...] = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class Cells:
    """N cells as arrays. Lengths are in microns."""

    kind: NDArray[np.int64]  # (N,) indices in NAMES
    centre: Array  # (N, 2) (x, y) of the nucleus
    angle: Array  # (N,) of the long axis, in radians
    axes: Array  # (N, 2) half axes of the nucleus
    body: Array  # (N, 2) (x, y) of the centre of the cell body
    tone: Array  # (N,) factor of the haematoxylin in the nucleus, about 1

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, field: str) -> Array:
        """The value of `field` of each cell's kind, float32 (N,)."""
        table = np.array([getattr(KINDS[name], field) for name in NAMES], np.float32)
        return table[self.kind]

    def take(self, keep: NDArray[np.bool_]) -> Cells:
        """The cells where `keep` (N,) is true."""
        return Cells(*(getattr(self, name)[keep] for name in Cells.__slots__))


def lattice(rng: np.random.Generator, grid: Grid, spacing: float, jitter: float = 0.22) -> Array:
    """Points (N, 2) of a hexagonal lattice with random rotation, offset and noise, on and around the patch.

    spacing  distance of the points in microns
    jitter   standard deviation of the noise, as a share of `spacing`
    """
    reach = grid.span / 2 + 1.2 * spacing
    count = int(np.ceil(1.42 * reach / spacing)) + 1
    i, j = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1))
    points = np.stack([i + 0.5 * (j % 2), 0.866 * j], -1).reshape(-1, 2) * spacing
    points = points + rng.uniform(-0.5, 0.5, 2) * spacing + rng.normal(0, jitter * spacing, points.shape)
    turn = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = points @ rotation
    inside = np.abs(points).max(1) < reach
    return (points[inside] + grid.span / 2).astype(np.float32)


def make_cells(
    rng: np.random.Generator,
    kinds: list[str] | NDArray[np.str_],
    centre: Array,
    angle: Array | None,
    size: float,
) -> Cells:
    """Cells of the N `kinds` at `centre` (N, 2), with random sizes and shapes.

    angle  (N,) of the long axis, in radians; None: random
    size   factor of the radii
    """
    ids = np.array([NAMES.index(k) for k in kinds], np.int64)
    blank = np.zeros(len(ids), np.float32)
    cells = Cells(ids, centre.astype(np.float32), blank, blank, centre, blank)
    if angle is None:
        angle = rng.uniform(0, np.pi, len(ids)).astype(np.float32)
    radius = (
        size * cells.of("radius") * np.clip(1 + cells.of("spread") * rng.standard_normal(len(ids)), 0.6, 1.6)
    )
    root = np.sqrt(np.maximum(1, cells.of("aspect") * rng.lognormal(0, 0.12, len(ids))))
    axes = np.stack([radius * root, radius / root], -1).astype(np.float32)
    away = rng.uniform(0, 2 * np.pi, len(ids))
    shift = (cells.of("offset") * radius)[:, None] * np.stack([np.cos(away), np.sin(away)], -1)
    tone = rng.lognormal(0, 0.18, len(ids)).astype(np.float32)
    return Cells(ids, cells.centre, angle.astype(np.float32), axes, (centre + shift).astype(np.float32), tone)


def join(groups: list[Cells]) -> Cells:
    """The cells of all groups in one record."""
    return Cells(*(np.concatenate([getattr(g, name) for g in groups]) for name in Cells.__slots__))


@dataclass(frozen=True, slots=True)
class CellMaps:
    """Soft masks of cells in 0..1 and, for each pixel, the cell that owns it, as its row in `Cells`."""

    nucleus: Map
    depth: Map  # 0 in the centre of the nearest nucleus, 1 at its edge
    nucleus_owner: NDArray[np.int64]  # (S, S)
    body: Map
    membrane: Map
    body_owner: NDArray[np.int64]  # (S, S)
    nucleoli: Map


def draw_cells(rng: np.random.Generator, cells: Cells, grid: Grid, warp: NDArray[np.float32]) -> CellMaps:
    """Maps of `cells`.

    warp  (2, S, S), the shift of each pixel in microns; it makes the outlines of nuclei irregular
    """
    size = grid.size
    depth, body_edge, gap = (np.empty((size, size), np.float32) for _ in range(3))
    nucleus_owner, body_owner = (np.zeros((size, size), np.int64) for _ in range(2))
    forms = _forms(cells.centre, cells.angle, cells.axes)
    ratio = cells.of("body")[:, None]
    body_axes = cells.axes * ratio
    body_forms = _forms(cells.body, cells.angle, body_axes)
    short = body_axes.min(1)
    reach = 4 + 1.3 * body_axes.max(1)  # microns from the centre, beyond which a cell draws nothing
    for top in range(0, size, BLOCK):
        for left in range(0, size, BLOCK):
            view = np.s_[top : top + BLOCK, left : left + BLOCK]
            x = grid.axis[None, left : left + BLOCK] + warp[0][view]
            y = grid.axis[top : top + BLOCK, None] + warp[1][view]
            near = _near(cells.centre, reach, x, y)
            basis = np.stack([x * x, x * y, y * y, x, y, np.ones_like(x)], -1)
            q = basis.reshape(-1, 6) @ forms[near].T
            first = q.argmin(1)
            rows = np.arange(len(q))
            nucleus_owner[view] = near[first].reshape(x.shape)
            depth[view] = np.sqrt(np.maximum(q[rows, first], 0)).reshape(x.shape)
            # A pixel belongs to the body with the nearest outline, so neighbours share a straight border.
            distance = (np.sqrt(np.maximum(basis.reshape(-1, 6) @ body_forms[near].T, 0)) - 1) * short[near]
            owner = distance.argmin(1)
            edge = distance[rows, owner].copy()
            distance[rows, owner] = np.inf
            body_owner[view] = near[owner].reshape(x.shape)
            body_edge[view] = edge.reshape(x.shape)
            gap[view] = ((distance.min(1) - edge) / 2).reshape(x.shape)
    soft = max(0.7, 1.1 * grid.mpp)
    nucleus = step((1 - depth) * cells.axes.min(1)[nucleus_owner], soft)
    body = step(-body_edge, soft)
    rim = np.where(body_edge < 0, np.minimum(-body_edge, gap), body_edge)
    return CellMaps(
        nucleus, depth, nucleus_owner, body, band(rim, max(0.55, 0.8 * grid.mpp)), body_owner,
        _nucleoli(rng, cells, grid),
    )  # fmt: skip


def _forms(centre: Array, angle: Array, axes: Array) -> Array:
    """Coefficients (N, 6) over (x², xy, y², x, y, 1) of quadratic forms that are 1 on each ellipse."""
    c, s = np.cos(angle), np.sin(angle)
    u, v = axes[:, 0] ** -2, axes[:, 1] ** -2
    xx, yy, xy = c * c * u + s * s * v, s * s * u + c * c * v, c * s * (u - v)
    cx, cy = centre[:, 0], centre[:, 1]
    gx, gy = xx * cx + xy * cy, xy * cx + yy * cy
    return np.stack([xx, 2 * xy, yy, -2 * gx, -2 * gy, gx * cx + gy * cy], -1).astype(np.float32)


def _near(centre: Array, reach: Array, x: Array, y: Array) -> NDArray[np.int64]:
    """Rows of the cells that can own a pixel of this block: at least two, a nearest and a second nearest."""
    over = np.maximum(
        np.maximum(x.min() - centre[:, 0], centre[:, 0] - x.max()),
        np.maximum(y.min() - centre[:, 1], centre[:, 1] - y.max()),
    )
    near = np.flatnonzero(over < reach)
    return near if len(near) > 1 else np.argsort(over)[:2]


def _nucleoli(rng: np.random.Generator, cells: Cells, grid: Grid) -> Map:
    count = rng.poisson(cells.of("nucleoli"))
    host = np.repeat(np.arange(len(cells)), count)
    place = cells.centre[host] + rng.normal(0, 0.3, (len(host), 2)) * cells.axes[host].min(1)[:, None]
    size = rng.uniform(0.5, 1.0, len(host)).astype(np.float32)
    return np.minimum(dots(grid, place.astype(np.float32), size, np.ones(len(host), np.float32)), 1)
