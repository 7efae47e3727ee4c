"""The meshes of ten shapes, from Open3D's generators, each in the unit ball around its centre."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pointcloud.import_open3d import import_open3d
from pointcloud.scenes.objects import Mesh

# An icosahedron is left out: under noise it is a sphere.
SHAPES = ("sphere", "box", "cylinder", "cone", "torus", "arrow", "moebius", "tetrahedron", "octahedron", "frame")


@cache
def primitive(name: str) -> Mesh:
    """Return the mesh of one of `SHAPES`; it is made once."""
    meshes = import_open3d().geometry.TriangleMesh
    made = {
        "sphere": lambda: meshes.create_sphere(1, 24),
        "box": lambda: meshes.create_box(1, 1, 1),
        "cylinder": lambda: meshes.create_cylinder(0.5, 1.4, 32),
        "cone": lambda: meshes.create_cone(0.6, 1.2, 32),
        "torus": lambda: meshes.create_torus(0.7, 0.25, 32, 16),
        "arrow": lambda: meshes.create_arrow(0.12, 0.3, 1.0, 0.6, 20),
        "moebius": lambda: meshes.create_mobius(twists=1, radius=1, width=0.7),
        "tetrahedron": lambda: meshes.create_tetrahedron(1),
        "octahedron": lambda: meshes.create_octahedron(1),
        "frame": lambda: meshes.create_coordinate_frame(1),
    }[name]()
    return centred(to_mesh(made))


def to_mesh(made: Any) -> Mesh:
    """Return Open3D's mesh as ours, grey all over."""
    triangles = np.asarray(made.triangles).astype(np.int64)
    return Mesh(np.asarray(made.vertices).astype(np.float64), triangles, np.full(len(triangles), 0.5))


def centred(mesh: Mesh) -> Mesh:
    """Return a mesh with the middle of its bounding box at 0 and its farthest vertex at distance 1."""
    vertices = mesh.vertices - (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    return Mesh(vertices / np.linalg.norm(vertices, axis=1).max(), mesh.triangles, mesh.reflectance)
