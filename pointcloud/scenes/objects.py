"""Meshes of what stands in a street, each a table of boxes and cylinders that fills a box of the wanted size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Mesh:
    """Triangles and the share of light that each reflects."""

    vertices: Float[np.ndarray, "vertices 3"]
    triangles: Int[np.ndarray, "triangles 3"]
    reflectance: Float[np.ndarray, " triangles"]


@dataclass(frozen=True)
class Part:
    """A prism in the unit box of its object: x from -0.5 (back) to 0.5, y likewise, z from 0 (ground) to 1.

    `reflectance` None is the object's own colour; `top` is the width of the upper end, 1 at the lower one.
    """

    centre: Triple
    size: Triple
    reflectance: float | None = None
    sides: int = 4
    top: float = 1.0
    wheel: bool = False  # the prism's axis is y, not z


def _wheels(x: float, z: float) -> tuple[Part, ...]:
    return tuple(
        Part((front * x, left * 0.43, z / 2), (0.15, 0.14, z), 0.05, sides=8, wheel=True)
        for front in (-1, 1)
        for left in (-1, 1)
    )


CAR = (
    Part((0.0, 0.0, 0.36), (1.0, 1.0, 0.42)),
    Part((-0.08, 0.0, 0.78), (0.6, 0.92, 0.44), 0.1, top=0.72),
    *_wheels(0.31, 0.38),
)
VAN = (
    Part((-0.12, 0.0, 0.55), (0.76, 1.0, 0.9)),
    Part((0.38, 0.0, 0.35), (0.24, 0.98, 0.5), top=0.9),
    *_wheels(0.32, 0.3),
)
TRUCK = (
    Part((-0.13, 0.0, 0.65), (0.74, 1.0, 0.7)),
    Part((0.39, 0.0, 0.45), (0.22, 0.92, 0.7)),
    Part((0.0, 0.0, 0.26), (0.9, 0.5, 0.12), 0.15),
    *_wheels(0.34, 0.28),
)
PEDESTRIAN = (
    Part((0.22, 0.16, 0.24), (0.26, 0.26, 0.48), 0.25, sides=6),
    Part((-0.22, -0.16, 0.24), (0.26, 0.26, 0.48), 0.25, sides=6),
    Part((0.0, 0.0, 0.65), (0.5, 0.7, 0.36), sides=8, top=0.85),
    Part((0.06, 0.0, 0.92), (0.32, 0.3, 0.16), 0.35, sides=8, top=0.8),
    Part((0.25, -0.42, 0.62), (0.5, 0.16, 0.12), sides=6),
    Part((-0.25, 0.42, 0.6), (0.5, 0.16, 0.12), sides=6),
)
CYCLIST = (
    Part((-0.31, 0.0, 0.19), (0.38, 0.08, 0.38), 0.05, sides=8, wheel=True),
    Part((0.31, 0.0, 0.19), (0.38, 0.08, 0.38), 0.05, sides=8, wheel=True),
    Part((0.0, 0.0, 0.36), (0.6, 0.06, 0.16), 0.4),
    Part((0.24, 0.0, 0.56), (0.08, 1.0, 0.05), 0.3),
    Part((-0.02, 0.18, 0.4), (0.16, 0.2, 0.36), 0.25, sides=6),
    Part((-0.02, -0.18, 0.32), (0.16, 0.2, 0.36), 0.25, sides=6),
    Part((0.0, 0.0, 0.7), (0.28, 0.66, 0.34), sides=8, top=0.9),
    Part((0.08, 0.0, 0.93), (0.16, 0.34, 0.14), 0.35, sides=8),
)
BLOCK = (Part((0.0, 0.0, 0.5), (1.0, 1.0, 1.0)),)
POLE = (Part((0.0, 0.0, 0.5), (1.0, 1.0, 1.0), sides=8),)
BUSH = (
    Part((0.0, 0.0, 0.3), (1.0, 0.9, 0.6), sides=8, top=0.9),
    Part((0.1, 0.05, 0.75), (0.7, 0.8, 0.5), sides=6, top=0.5),
)


@cache
def _prism(sides: int) -> tuple[Float[np.ndarray, "vertices 3"], Int[np.ndarray, "triangles 3"]]:
    """Return an upright prism in [-0.5, 0.5]^3, its lower ring first, with triangles turned outwards."""
    angles = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    ring = 0.5 / np.cos(np.pi / sides) * np.stack([np.cos(angles), np.sin(angles)], 1)
    vertices = np.concatenate([np.insert(ring, 2, height, 1) for height in (-0.5, 0.5)])
    first, second = np.arange(sides), (np.arange(sides) + 1) % sides
    walls = [np.stack([first, second, second + sides], 1), np.stack([first, second + sides, first + sides], 1)]
    middle = np.arange(1, sides - 1)
    floor = np.stack([np.zeros_like(middle), middle + 1, middle], 1)
    return vertices, np.concatenate([*walls, floor, floor[:, ::-1] + sides])


def build(
    parts: tuple[Part, ...], size: Triple, reflectance: float, generator: np.random.Generator, jitter: float = 0.06
) -> Mesh:
    """Return the mesh of an object (heading +x, standing on z = 0) that fills length, width and height exactly.

    Every part's place and size is changed by up to the share `jitter`, so that no two objects are the same.
    """
    vertices, triangles, colors, count = [], [], [], 0
    for part, changes in zip(parts, generator.uniform(1 - jitter, 1 + jitter, (len(parts), 6)), strict=True):
        corners, faces = _prism(part.sides)
        corners = corners * np.where(corners[:, 2:] > 0, [part.top, part.top, 1], 1)
        if part.wheel:
            corners = corners[:, [0, 2, 1]]
            faces = faces[:, ::-1]
        vertices.append(corners * part.size * changes[:3] + part.centre * changes[3:])
        triangles.append(faces + count)
        colors.append(np.full(len(faces), reflectance if part.reflectance is None else part.reflectance))
        count += len(corners)
    points = np.concatenate(vertices)
    lowest = points.min(0)
    points = (points - lowest) / (points.max(0) - lowest) - [0.5, 0.5, 0]
    return Mesh(points * size, np.concatenate(triangles), np.concatenate(colors))


def join(meshes: list[Mesh]) -> tuple[Mesh, Int[np.ndarray, " triangles"]]:
    """Return all meshes as one, and for each triangle the number of the mesh that it came from."""
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    whole = Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.triangles + start for mesh, start in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.reflectance for mesh in meshes]),
    )
    return whole, np.repeat(np.arange(len(meshes)), [len(mesh.triangles) for mesh in meshes])
