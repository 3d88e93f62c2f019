"""The pixel grid of a patch in microns, and the primitives that are drawn on it: noise, dots, bands, blur."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]  # (S, S), one value per pixel; the row is y


@dataclass(frozen=True, slots=True)
class Grid:
    """A square patch of `size` pixels at `mpp` microns per pixel; points are (x, y) in microns."""

    size: int
    mpp: float

    @property
    def span(self) -> float:
        """Side of the field of view in microns."""
        return self.size * self.mpp

    @property
    def axis(self) -> NDArray[np.float32]:
        """The centres of the pixels along one side, float32 (S,), in microns."""
        return _axis(self.size, self.mpp)

    def sample(self, field: Map, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N,) values of `field` at the pixels nearest to `points` (N, 2); outside, those of the edge."""
        index = np.clip((points / self.mpp).astype(np.int32), 0, self.size - 1)
        return field[index[:, 1], index[:, 0]]


@lru_cache(maxsize=32)
def _axis(size: int, mpp: float) -> NDArray[np.float32]:
    return ((np.arange(size) + 0.5) * mpp).astype(np.float32)


@lru_cache(maxsize=256)
def _spline(size: int, mpp: float, scale: float) -> NDArray[np.float32]:
    """Cubic B-spline weights (S, K) of K knots, `scale` microns apart.

    Rows have unit length, so that a weighted sum of N(0, 1) knots has variance 1.
    """
    knots = int(np.ceil(size * mpp / scale)) + 4
    distance = np.abs(_axis(size, mpp)[:, None] / scale - (np.arange(knots) - 1.5)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def noise(rng: np.random.Generator, grid: Grid, scale: float, count: int = 1) -> NDArray[np.float32]:
    """`count` smooth random fields, float32 (count, S, S), about N(0, 1), that vary over `scale` microns."""
    weights = _spline(grid.size, grid.mpp, max(scale, grid.mpp))
    knots = rng.standard_normal((count, weights.shape[1], weights.shape[1]), dtype=np.float32)
    return np.asarray(weights @ knots @ weights.T, np.float32)


def dots(
    grid: Grid, points: NDArray[np.float32], radius: NDArray[np.float32], weight: NDArray[np.float32]
) -> Map:
    """The sum of Gaussian spots at `points` (N, 2), of `radius` (N,) in microns and height `weight` (N,).

    It is computed by one matrix product.
    """
    if len(points) == 0:
        return np.zeros((grid.size, grid.size), np.float32)
    width = np.maximum(radius, 0.6 * grid.mpp)[:, None]
    across = np.exp(-(((grid.axis[None, :] - points[:, :1]) / width) ** 2))
    down = np.exp(-(((grid.axis[None, :] - points[:, 1:]) / width) ** 2))
    return (down * weight[:, None]).T @ across


def step(signed_distance: NDArray[np.float32], softness: float) -> NDArray[np.float32]:
    """1 where the signed distance is positive and 0 where it is negative, with an edge `softness` wide.

    Both are in microns.
    """
    t = np.clip(signed_distance / softness + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def band(distance: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """A Gaussian ridge: 1 at distance 0, and 1/e at `width` on either side. Both are in microns."""
    return np.exp(-((distance / width) ** 2))


@lru_cache(maxsize=64)
def _gauss(size: int, sigma: float) -> NDArray[np.float32]:
    offset = np.arange(size)[:, None] - np.arange(size)[None, :]
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur of float32 (S, S, C) by `sigma` pixels, normalised at the edges."""
    if sigma < 0.2:
        return image
    kernel = _gauss(image.shape[0], round(sigma, 2))
    flat = kernel @ image.reshape(image.shape[0], -1)
    turned = flat.reshape(image.shape).transpose(1, 0, 2)
    return (kernel @ turned.reshape(image.shape[1], -1)).reshape(turned.shape).transpose(1, 0, 2)
