"""A patch before staining: maps of structures and cells, and the canvas to which builders add them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from his2lip.synthetic.cells import CellMaps, Cells, draw_cells, join, make_cells
from his2lip.synthetic.grid import Grid, Map, noise

Points = NDArray[np.float32]

# Structures that are not cells. Each is a map in 0..1; dense carbon and debris may exceed 1.
LAYERS: tuple[str, ...] = (
    "collagen",  # stromal fibres
    "muscle",  # smooth muscle of vessel walls
    "endothelium",  # lining of blood vessels
    "lymphatic",  # lining of lymphatic vessels
    "lining",  # type I pneumocytes on alveolar walls
    "debris",  # granular necrosis
    "matrix",  # hyaline cartilage
    "red",  # red blood cells
    "carbon",  # anthracotic pigment
    "mucus",
    "dirt",  # dust on glass, not tissue
)


@dataclass(frozen=True, slots=True)
class Scene:
    """One field of tissue. Maps are (S, S). `tissue` is 1 on tissue, and 0 on glass, in air and in lumens."""

    grid: Grid
    tissue: Map
    layers: dict[str, Map]
    cells: Cells
    maps: CellMaps
    centre: int | None  # row of the cell that was placed in the middle
    texture: NDArray[np.float32]  # (2, S, S) fine noise, about N(0, 1): of chromatin, of chromogen


@dataclass(slots=True)
class Canvas:
    """A scene that is being built. Builders add layers and groups of cells, then call `finish`."""

    grid: Grid
    rng: np.random.Generator
    size: float  # factor of the radii of nuclei
    warp: NDArray[np.float32]  # (2, S, S), shift of each pixel in microns, for irregular outlines
    layers: dict[str, Map]
    tissue: Map
    groups: list[Cells] = field(default_factory=list)
    holes: list[tuple[float, float, float]] = field(default_factory=list)  # (x, y, radius) without cells
    centre: int | None = None
    lumen: Map | None = None  # inside of vessels, where no cell is drawn

    @classmethod
    def blank(cls, grid: Grid, rng: np.random.Generator, size: float) -> Canvas:
        """A canvas that is tissue everywhere, without structures and cells."""
        coarse, fine = noise(rng, grid, 5.0, 2), noise(rng, grid, 2.2, 2)
        shape = (grid.size, grid.size)
        layers = {name: np.zeros(shape, np.float32) for name in LAYERS}
        return cls(grid, rng, size, 0.55 * coarse + 0.2 * fine, layers, np.ones(shape, np.float32))

    @property
    def xy(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """x and y of each pixel in microns, (S, S) each, shifted by the warp."""
        axis = self.grid.axis
        return axis[None, :] + self.warp[0], axis[:, None] + self.warp[1]

    def add(self, kinds: list[str], centre: Points, angle: Points | None = None) -> None:
        """Adds one cell per entry of `kinds`, at `centre` (N, 2), with `angle` (N,) or random angles."""
        if len(kinds):
            self.groups.append(make_cells(self.rng, kinds, centre, angle, self.size))

    def lay(self, name: str, mask: Map) -> None:
        """Sets the layer to the larger of its value and `mask`, at each pixel."""
        np.maximum(self.layers[name], mask, out=self.layers[name])

    def free(self, points: Points) -> NDArray[np.bool_]:
        """bool (N,): which points (N, 2) are outside all holes."""
        keep = np.ones(len(points), bool)
        for x, y, radius in self.holes:
            keep &= np.hypot(points[:, 0] - x, points[:, 1] - y) > radius
        return keep

    def centre_on(self, kind: str) -> None:
        """Removes the cells in the middle of the field and places one cell of `kind` there."""
        middle = self.grid.span / 2
        self.groups = [g.take(np.hypot(*(g.centre - middle).T) > 6.5 * self.size) for g in self.groups]
        self.add([kind], np.full((1, 2), middle, np.float32))
        self.centre = sum(map(len, self.groups)) - 1

    def finish(self) -> Scene:
        """The scene, with the maps of its cells, and tissue where there is a cell."""
        # Two cells outside the field, so that every pixel has a nearest and a second nearest cell.
        far = np.full((2, 2), -99.0, np.float32) - self.grid.span
        self.add(["pyknotic", "pyknotic"], far)
        cells = join(self.groups)
        maps = draw_cells(self.rng, cells, self.grid, self.warp)
        if self.lumen is not None:
            for mask in (maps.nucleus, maps.body, maps.membrane):
                mask *= 1 - self.lumen
        tissue = np.maximum(self.tissue, np.maximum(maps.body, maps.nucleus))
        grain = np.concatenate([noise(self.rng, self.grid, 0.9), noise(self.rng, self.grid, 0.55)])
        return Scene(self.grid, tissue, self.layers, cells, maps, self.centre, grain)
