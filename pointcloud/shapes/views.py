"""What a sensor gets of a mesh: points all over it, a part of them, or a scan from one side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pointcloud.import_open3d import import_open3d
from pointcloud.scenes.lidar import Lidar, scan
from pointcloud.scenes.objects import Mesh

DISTANCE = 3.0  # of a sensor from the centre of a mesh in the unit ball
SENSOR = Lidar(beams=40, azimuths=640, lowest=-20, highest=20, height=0, noise=0, dropout=0.05)
FEWEST_POINTS = 64
MOST_CUT = 0.35  # the largest share of points that a half-space takes away


class Surface(NamedTuple):
    """Points on a mesh and the triangles that they lie on."""

    xyz: Float[np.ndarray, "points 3"]
    triangle: Int[np.ndarray, " points"]

    def rows(self, chosen: np.ndarray) -> Surface:
        """Return the points of a mask or of row numbers."""
        return Surface(self.xyz[chosen], self.triangle[chosen])


def sample_surface(mesh: Mesh, count: int, generator: np.random.Generator) -> Surface:
    """Return `count` points evenly spread over the area of a mesh (square-root rule of Osada et al., TOG 2002)."""
    a, b, c = (mesh.vertices[mesh.triangles[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).cumsum()
    triangle = np.searchsorted(area, generator.random(count) * area[-1]).clip(max=len(area) - 1)
    root, along = np.sqrt(generator.random((count, 1))), generator.random((count, 1))
    xyz = (1 - root) * a[triangle] + root * (1 - along) * b[triangle] + root * along * c[triangle]
    return Surface(xyz, triangle)


def cut(surface: Surface, generator: np.random.Generator) -> Surface:
    """Return the points without those beyond a random plane, at most the share `MOST_CUT` of them."""
    along = surface.xyz @ direction(generator)
    return surface.rows(along <= np.quantile(along, 1 - generator.uniform(0.1, MOST_CUT)))


def visible(surface: Surface, generator: np.random.Generator) -> Surface:
    """Return the points seen from a random side (hidden point removal: Katz, Tal and Basri, SIGGRAPH 2007)."""
    open3d = import_open3d()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(surface.xyz))
    _, rows = cloud.hidden_point_removal(direction(generator) * DISTANCE, 100 * DISTANCE)
    return surface.rows(np.sort(np.asarray(rows)))


def scanned(mesh: Mesh, generator: np.random.Generator) -> Surface:
    """Return what a scanner at `DISTANCE` on a random side of a mesh sees of it, in the frame of the mesh."""
    turn = rotation(generator)
    turned = Mesh(mesh.vertices @ turn.T + [DISTANCE, 0, 0], mesh.triangles, mesh.reflectance)
    returns = scan(turned, SENSOR, generator)
    return Surface((returns.xyz - [DISTANCE, 0, 0]) @ turn, returns.triangle)


def observe(mesh: Mesh, count: int, generator: np.random.Generator) -> Surface:
    """Return at most `count` points of a mesh: of all of it, cut, from one side, or scanned, by chance."""
    choice = generator.random()
    if choice < 0.25:
        seen = scanned(mesh, generator)
    else:
        seen = sample_surface(mesh, count, generator)
        hide = cut if choice < 0.5 else visible if choice < 0.7 else None
        seen = seen if hide is None else hide(seen, generator)
    if len(seen.xyz) < FEWEST_POINTS:  # a thin thing seen end on
        seen = sample_surface(mesh, count, generator)
    if len(seen.xyz) > count:
        seen = seen.rows(np.sort(generator.choice(len(seen.xyz), count, replace=False)))
    return seen


def direction(generator: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """Return a random unit vector."""
    vector = generator.normal(size=3)
    return vector / np.linalg.norm(vector)


def rotation(generator: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Return a random rotation, every one as likely (QR with positive diagonal: Stewart, SIAM 1980)."""
    q, r = np.linalg.qr(generator.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)
