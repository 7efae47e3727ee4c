"""Read PLY and PCD, with their attributes, by open3d."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from pathlib import Path

import numpy as np

from pointcloud.import_open3d import import_open3d

GROUPS = ("x y z", "nx ny nz", "red green blue")
OURS = {"colors": "color", "normals": "normal"}


def read_open3d(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz and all attributes; ValueError if the file is cut short or of another kind."""
    open3d, log = import_open3d(), io.StringIO()
    level = open3d.utility.VerbosityLevel.Warning
    broken = ValueError(f"{path} cannot be read as {path.suffix}: it is cut short or of another kind")
    if path.suffix.lower() == ".pcd" and not _is_whole(path):
        raise broken
    if path.suffix.lower() == ".ply":
        _check_groups(path)
    try:
        with contextlib.redirect_stdout(log), open3d.utility.VerbosityContextManager(level):
            cloud = open3d.t.io.read_point_cloud(str(path))
        columns = {name: cloud.point[name].numpy() for name in cloud.point}
    except (RuntimeError, UnicodeDecodeError) as error:
        raise broken from error
    # Of a PLY that is cut short, open3d returns rows of random numbers: only its log tells.
    said = " ".join(re.sub("\x1b[^m]*m", "", log.getvalue()).split())
    if "failed" in said or "positions" not in columns:
        raise broken
    if said:
        warnings.warn(f"{path}: {said}", stacklevel=4)
    xyz = columns.pop("positions")
    return xyz, {_name(name): _unit(name, column) for name, column in columns.items()}


def _check_groups(path: Path) -> None:
    """Raise ValueError on a PLY with some of three properties that go together: open3d makes up the others."""
    names: set[bytes] = set()
    with path.open("rb") as file:
        while words := file.readline(4096).split():
            if words[0] == b"end_header":
                break
            names |= {words[-1]} if words[0] == b"property" else set()
    for group in GROUPS:
        there = [name for name in group.split() if name.encode() in names]
        if len(there) not in (0, 3):
            raise ValueError(f"{path} has {', '.join(there)} alone of {group}; all three are needed")


def _is_whole(path: Path) -> bool:
    """Say whether a PCD has a whole header and the data that it says; open3d takes the rest from anywhere in memory."""
    fields: dict[bytes, list[bytes]] = {}
    with path.open("rb") as file:
        while b"DATA" not in fields:
            words = file.readline(4096).split()
            if not words:
                return False
            fields[words[0]] = words[1:]
        rest = file.read()
    try:
        sizes, points = [int(size) for size in fields[b"SIZE"]], int(fields[b"POINTS"][0])
        counts = [int(count) for count in fields.get(b"COUNT", [b"1"] * len(sizes))]
        if not len(fields[b"FIELDS"]) == len(fields[b"TYPE"]) == len(sizes):
            return False
        row = sum(size * count for size, count in zip(sizes, counts, strict=True))
        if fields[b"DATA"] == [b"ascii"]:
            return len(rest.split()) >= sum(counts) * points
        if fields[b"DATA"] == [b"binary"]:
            return len(rest) >= row * points
        packed, unpacked = struct.unpack_from("<II", rest)
        return len(rest) >= 8 + packed and unpacked == row * points
    except (KeyError, ValueError, IndexError, struct.error):
        return False


def _name(name: str) -> str:
    """Return our name of an attribute; CloudCompare writes scalar_Intensity."""
    return OURS.get(name, name.removeprefix("scalar_").lower())


def _unit(name: str, column: np.ndarray) -> np.ndarray:
    if name == "colors" and column.dtype.kind == "u":
        column = column / np.iinfo(column.dtype).max
    return column[:, 0] if column.shape[1:] == (1,) else column
