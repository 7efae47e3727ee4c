"""Undulating ground and the roads that lie on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pointcloud.scenes.objects import Mesh

LANE = 3.5  # metres
ASPHALT, GRASS, PAINT = 0.12, 0.35, 0.65  # reflectance


@dataclass(frozen=True)
class Road:
    """A straight road; `distance` along it and `side` to the left of its middle are its own coordinates.

    The ground's origin lies at (`start`, `offset`) in these coordinates.
    """

    angle: float
    start: float
    offset: float
    half_width: float

    def place(self, distance: float, side: float) -> tuple[float, float]:
        """Return x and y of a place on the road."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along, left = distance - self.start, side - self.offset
        return cos * along - sin * left, sin * along + cos * left

    def side(self, xy: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, " points"]:
        """Return how far points lie to the left of the middle."""
        return xy[:, 1] * np.cos(self.angle) - xy[:, 0] * np.sin(self.angle) + self.offset


@dataclass(frozen=True)
class Ground:
    """A sum of waves (amplitude, wave numbers in x and y, phase) that is 0 at the origin, and roads."""

    waves: Float[np.ndarray, "waves 4"]
    roads: tuple[Road, ...]

    def height(self, xy: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, " points"]:
        """Return z of the ground."""
        amplitude, phase = self.waves[:, 0], self.waves[:, 3]
        return (np.sin(xy @ self.waves[:, 1:3].T + phase) - np.sin(phase)) @ amplitude

    def reflectance(self, xy: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, " points"]:
        """Return asphalt on roads, paint on the lines between lanes, grass elsewhere."""
        result = np.full(len(xy), GRASS)
        for road in self.roads:
            side = np.abs(road.side(xy))
            line = np.abs(side - np.round(side / LANE) * LANE) < 0.1
            result = np.where(side < road.half_width, np.where(line, PAINT, ASPHALT), result)
        return result

    def mesh(self, reach: float = 72.0, cell: float = 4.0) -> Mesh:
        """Return the square of the ground within `reach` metres."""
        axis = np.arange(-reach, reach + cell / 2, cell)
        xy = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        corner = np.arange(len(xy)).reshape(len(axis), -1)
        a, b, c, d = (part.ravel() for part in (corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]))
        triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
        return Mesh(np.insert(xy, 2, self.height(xy), 1), triangles, np.full(len(triangles), GRASS))


def random_ground(generator: np.random.Generator) -> Ground:
    """Draw flat or rolling ground with a road below the sensor and, half of the time, one that crosses it."""
    flat = generator.random() < 0.3
    amplitude = np.zeros(3) if flat else generator.uniform(0.05, 0.35, 3)
    number, direction = 2 * np.pi / generator.uniform(30, 80, 3), generator.uniform(-np.pi, np.pi, 3)
    phase = generator.uniform(-np.pi, np.pi, 3)
    waves = np.stack([amplitude, number * np.cos(direction), number * np.sin(direction), phase], 1)
    lanes = int(generator.integers(1, 3))  # to each side
    own = Road(generator.uniform(-np.pi, np.pi), 0.0, -LANE * (generator.integers(lanes) + 0.5), LANE * lanes)
    crossing = Road(
        own.angle + np.pi / 2 + generator.normal(0, 0.15),
        generator.uniform(-20, 20),
        generator.choice([-1, 1]) * generator.uniform(9, 28),
        LANE * int(generator.integers(1, 3)),
    )
    return Ground(waves, (own, crossing) if generator.random() < 0.5 else (own,))
