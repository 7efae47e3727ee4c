"""Objects put together from Open3D's primitives, whose triangles know the part that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from pointcloud.import_open3d import import_open3d
from pointcloud.scenes.objects import Mesh, Triple, join
from pointcloud.shapes.primitives import centred, to_mesh

# The parts of every category, in the order of their labels.
CATEGORIES = {
    "table": ("top", "legs"),
    "chair": ("seat", "back", "legs"),
    "lamp": ("base", "pole", "shade"),
    "mug": ("body", "handle"),
    "rocket": ("body", "nose", "fins"),
}
PARTS = tuple(f"{category} {part}" for category, parts in CATEGORIES.items() for part in parts)


class Piece(NamedTuple):
    """A primitive that fills a box of this size around this centre, z up from the ground; `part` is its part's name."""

    part: str
    kind: str
    centre: Triple
    size: Triple


def make_object(category: str, generator: np.random.Generator) -> tuple[Mesh, Int[np.ndarray, " triangles"]]:
    """Return an object of random proportions in the unit ball, z up, and the part of each triangle, a row of `PARTS`.

    ValueError on an unknown category.
    """
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r}; accepted: {', '.join(CATEGORIES)}")
    pieces = MAKERS[category](generator)
    mesh, piece_of = join([_placed(piece) for piece in pieces])
    parts = np.array([PARTS.index(f"{category} {piece.part}") for piece in pieces])
    return centred(mesh), parts[piece_of]


def _legs(width: float, depth: float, height: float, thick: float) -> list[Piece]:
    x, y = (width - thick) / 2, (depth - thick) / 2
    corners = [(x, y), (x, -y), (-x, y), (-x, -y)]
    return [Piece("legs", "cylinder", (a, b, height / 2), (thick, thick, height)) for a, b in corners]


def _table(generator: np.random.Generator) -> list[Piece]:
    width, depth, height = generator.uniform((0.8, 0.8, 0.6), (1.8, 1.2, 1.0))
    thick = generator.uniform(0.05, 0.12)
    kind = "box" if generator.random() < 0.6 else "cylinder"
    legs = _legs(0.8 * width, 0.8 * depth, height, generator.uniform(0.06, 0.12))
    if kind == "cylinder" and generator.random() < 0.5:
        legs = [
            Piece("legs", "cylinder", (0, 0, height / 2), (0.12, 0.12, height)),
            Piece("legs", "cylinder", (0, 0, 0.03), (0.5 * width, 0.5 * depth, 0.06)),
        ]
    return [Piece("top", kind, (0, 0, height + thick / 2), (width, depth, thick)), *legs]


def _chair(generator: np.random.Generator) -> list[Piece]:
    width, depth, height, back = generator.uniform((0.7, 0.7, 0.5, 0.7), (1.0, 1.0, 0.8, 1.1))
    thick = generator.uniform(0.06, 0.12)
    top = height + thick
    return [
        Piece("seat", "box", (0, 0, height + thick / 2), (width, depth, thick)),
        Piece("back", "box", ((thick - width) / 2, 0, top + back / 2), (thick, depth, back)),
        *_legs(width, depth, height, generator.uniform(0.06, 0.12)),
    ]


def _lamp(generator: np.random.Generator) -> list[Piece]:
    height, base, shade, tall = generator.uniform((1.0, 0.5, 0.6, 0.35), (1.6, 0.9, 1.1, 0.6))
    kind = "cone" if generator.random() < 0.5 else "tube"
    return [
        Piece("base", "cylinder" if generator.random() < 0.5 else "box", (0, 0, 0.05), (base, base, 0.1)),
        Piece("pole", "cylinder", (0, 0, 0.1 + height / 2), (0.07, 0.07, height)),
        Piece("shade", kind, (0, 0, 0.1 + height), (shade, shade, tall)),
    ]


def _mug(generator: np.random.Generator) -> list[Piece]:
    width, height, handle = generator.uniform((0.7, 0.8, 0.4), (1.0, 1.3, 0.6))
    return [
        Piece("body", "tube", (0, 0, height / 2), (width, width, height)),
        Piece("body", "cylinder", (0, 0, 0.02), (width, width, 0.04)),
        Piece("handle", "half ring", ((width + 0.8 * handle) / 2, 0, height / 2), (0.8 * handle, 0.12, handle)),
    ]


def _rocket(generator: np.random.Generator) -> list[Piece]:
    width, height, nose, fin = generator.uniform((0.35, 1.0, 0.3, 0.25), (0.55, 1.6, 0.6, 0.45))
    reach = (width + fin) / 2
    beside = [(reach, 0.0, fin, 0.05), (-reach, 0.0, fin, 0.05), (0.0, reach, 0.05, fin), (0.0, -reach, 0.05, fin)]
    tall = generator.uniform(0.3, 0.5)
    return [
        Piece("body", "cylinder", (0, 0, height / 2), (width, width, height)),
        Piece("nose", "cone", (0, 0, height + nose / 2), (width, width, nose)),
        *(Piece("fins", "box", (x, y, tall / 2), (long, broad, tall)) for x, y, long, broad in beside),
    ]


MAKERS: dict[str, Callable[[np.random.Generator], list[Piece]]] = {
    "table": _table,
    "chair": _chair,
    "lamp": _lamp,
    "mug": _mug,
    "rocket": _rocket,
}


@cache
def _unit(kind: str) -> Mesh:
    """Return a primitive that fills the cube from -0.5 to 0.5."""
    meshes = import_open3d().geometry.TriangleMesh
    made = {
        "box": lambda: meshes.create_box(1, 1, 1),
        "cylinder": lambda: meshes.create_cylinder(0.5, 1, 20),
        "tube": lambda: meshes.create_cylinder(0.5, 1, 20),
        "cone": lambda: meshes.create_cone(0.5, 1, 20),
        "half ring": lambda: meshes.create_torus(1, 0.15, 24, 8),
    }[kind]()
    mesh = to_mesh(made)
    faces = mesh.vertices[mesh.triangles]
    if kind == "tube":  # without the lids
        mesh = _only(mesh, np.ptp(faces[:, :, 2], axis=1) > 1e-6)
    if kind == "half ring":  # the half beyond the body, turned to stand upright
        mesh = _only(mesh, faces[:, :, 0].mean(1) > 0)
        mesh = Mesh(mesh.vertices[:, [0, 2, 1]], mesh.triangles[:, ::-1], mesh.reflectance)
    used = mesh.vertices[mesh.triangles.flatten()]
    low, high = used.min(0), used.max(0)
    return Mesh((mesh.vertices - low) / (high - low) - 0.5, mesh.triangles, mesh.reflectance)


def _only(mesh: Mesh, kept: np.ndarray) -> Mesh:
    used, rows = np.unique(mesh.triangles[kept], return_inverse=True)
    return Mesh(mesh.vertices[used], rows.reshape(-1, 3), mesh.reflectance[kept])


def _placed(piece: Piece) -> Mesh:
    unit = _unit(piece.kind)
    return Mesh(unit.vertices * piece.size + piece.centre, unit.triangles, unit.reflectance)
