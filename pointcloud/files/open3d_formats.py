"""Read PLY and PCD, with their attributes, by open3d."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import numpy as np

from pointcloud.import_open3d import import_open3d

OURS = {"colors": "color", "normals": "normal"}


def read_open3d(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz and all attributes; ValueError if the file is cut short or of another kind."""
    open3d, log = import_open3d(), io.StringIO()
    level = open3d.utility.VerbosityLevel.Warning
    # Of a PLY that is cut short, open3d returns rows of random numbers: only its log tells.
    with contextlib.redirect_stdout(log), open3d.utility.VerbosityContextManager(level):
        cloud = open3d.t.io.read_point_cloud(str(path))
    said = " ".join(re.sub("\x1b[^m]*m", "", log.getvalue()).split())
    if "failed" in said or _ends_early(path):
        raise ValueError(f"{path} cannot be read as {path.suffix}: it is cut short or of another kind")
    if said:
        warnings.warn(f"{path}: {said}", stacklevel=4)
    columns = {name: cloud.point[name].numpy() for name in cloud.point}
    xyz = columns.pop("positions")
    return xyz, {_name(name): _unit(name, column) for name, column in columns.items()}


def _ends_early(path: Path) -> bool:
    """Say whether a PCD file of text has fewer numbers than its header says, which open3d fills with zeros."""
    with path.open("rb") as file:
        if path.suffix.lower() != ".pcd" or b"DATA ascii" not in file.read(4096):
            return False
    header, _, body = path.read_bytes().partition(b"DATA ascii")
    fields = {line.split()[0]: line.split()[1:] for line in header.splitlines() if line.strip()}
    numbers = sum(map(int, fields.get(b"COUNT", [b"1"] * len(fields[b"FIELDS"]))))
    return len(body.split()) < numbers * int(fields[b"POINTS"][0])


def _name(name: str) -> str:
    """Return our name of an attribute; CloudCompare writes scalar_Intensity."""
    return OURS.get(name, name.removeprefix("scalar_").lower())


def _unit(name: str, column: np.ndarray) -> np.ndarray:
    if name == "colors" and column.dtype.kind == "u":
        column = column / np.iinfo(column.dtype).max
    return column[:, 0] if column.shape[1:] == (1,) else column
