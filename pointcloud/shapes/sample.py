"""One cloud of a data set, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from pointcloud.points import PointCloud
from pointcloud.scenes.objects import Mesh
from pointcloud.shapes.objects import CATEGORIES, make_object
from pointcloud.shapes.primitives import SHAPES, primitive
from pointcloud.shapes.views import Surface, direction, observe, rotation

POINTS = 1024  # at most in a cloud, at least half of it before occlusion
NOISE = 0.02  # largest standard deviation, the object being in the unit ball
TILT = 15  # degrees that an object with parts leans over at most


@dataclass(frozen=True)
class Sample:
    """A cloud and what it is: a row of `SHAPES`, or of `CATEGORIES` with the attribute `label`, rows of `PARTS`."""

    cloud: PointCloud
    label: int


def make_shape(seed: int, points: int = POINTS) -> Sample:
    """Return a shape in any pose, stretched, scaled, noisy and partly hidden."""
    generator = np.random.default_rng(seed)
    label = int(generator.integers(len(SHAPES)))
    mesh = primitive(SHAPES[label])
    mesh = Mesh(mesh.vertices * generator.uniform(0.8, 1.2, 3), mesh.triangles, mesh.reflectance)
    surface = observe(mesh, _count(points, generator), generator)
    return Sample(_cloud(_moved(surface, rotation(generator), generator)), label)


def make_segments(seed: int, points: int = POINTS) -> Sample:
    """Return an object with labelled parts, turned about the vertical, leaning a little, noisy and partly hidden."""
    generator = np.random.default_rng(seed)
    label = int(generator.integers(len(CATEGORIES)))
    mesh, parts = make_object(tuple(CATEGORIES)[label], generator)
    surface = observe(mesh, _count(points, generator), generator)
    xyz = _moved(surface, _leaning(generator), generator)
    return Sample(_cloud(xyz, parts[surface.triangle]), label)


def _count(points: int, generator: np.random.Generator) -> int:
    return int(generator.integers(points // 2, points + 1))


def _leaning(generator: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Return any turn about z, then a tilt of at most `TILT` about a random axis (Rodrigues' formula)."""
    turn, tilt = generator.uniform(0, 2 * np.pi), np.radians(generator.uniform(0, TILT))
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    x, y, z = direction(generator)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + np.sin(tilt) * cross + (1 - np.cos(tilt)) * cross @ cross) @ about_z


def _moved(
    surface: Surface, turn: Float[np.ndarray, "3 3"], generator: np.random.Generator
) -> Float[np.ndarray, "points 3"]:
    noise = generator.normal(0, generator.uniform(0, NOISE), surface.xyz.shape)
    return ((surface.xyz + noise) @ turn.T) * generator.uniform(0.5, 2) + generator.uniform(-1, 1, 3)


def _cloud(xyz: Float[np.ndarray, "points 3"], parts: Int[np.ndarray, " points"] | None = None) -> PointCloud:
    attributes = {} if parts is None else {"label": torch.from_numpy(parts.astype(np.int64))}
    return PointCloud(torch.from_numpy(xyz.astype(np.float32)), attributes)
