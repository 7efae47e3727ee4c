"""Read PLY and PCD, with their attributes, by open3d."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import sys
import threading
import warnings
from itertools import takewhile
from pathlib import Path

import numpy as np

from pointcloud.import_open3d import import_open3d

GROUPS = ("x y z", "nx ny nz", "red green blue")
OURS = {"colors": "color", "normals": "normal"}
# Bytes of the types of a PLY, by both of their names.
SIZES = {
    **{"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8},
    **{"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8},
}
# All threads share the stdout through which open3d says what is wrong with a file: one of them reads at a time.
READING = threading.Lock()
if hasattr(os, "register_at_fork"):  # a process forked in the middle of a read would wait for it forever
    os.register_at_fork(before=READING.acquire, after_in_parent=READING.release, after_in_child=READING.release)


class _Log(io.TextIOBase):
    """Keeps what the thread that made it prints, and hands on what others do."""

    def __init__(self) -> None:
        self.thread, self.others, self.kept = threading.get_ident(), sys.stdout, io.StringIO()

    def write(self, text: str) -> int:
        """Keep the text, or hand it on."""
        return (self.kept if threading.get_ident() == self.thread else self.others).write(text)

    def flush(self) -> None:
        """Hand that on."""
        self.others.flush()


def read_open3d(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz and all attributes; ValueError if the file is cut short or of another kind."""
    open3d = import_open3d()
    level = open3d.utility.VerbosityLevel.Warning
    broken = ValueError(f"{path} cannot be read as {path.suffix}: it is cut short or of another kind")
    if path.suffix.lower() == ".pcd" and not _is_whole(path):
        raise broken
    if path.suffix.lower() == ".ply":
        header, start = _ply_header(path)
        _check_groups(path, header)
        if not _has_all_vertices(path, header, start):
            raise broken
    try:
        with READING:
            log = _Log()
            with contextlib.redirect_stdout(log), open3d.utility.VerbosityContextManager(level):
                cloud = open3d.t.io.read_point_cloud(str(path))
        columns = {name: cloud.point[name].numpy() for name in cloud.point}
    except (RuntimeError, UnicodeDecodeError) as error:
        raise broken from error
    # Of a PLY that is broken, open3d returns rows of random numbers: only its log tells.
    said = " ".join(re.sub("\x1b[^m]*m", "", log.kept.getvalue()).split())
    if "failed" in said or "positions" not in columns:
        raise broken
    if said:
        warnings.warn(f"{path}: {said}", stacklevel=4)
    xyz = columns.pop("positions")
    return xyz, {_name(name): _unit(name, column) for name, column in columns.items()}


def _ply_header(path: Path) -> tuple[list[list[bytes]], int]:
    """Return the words of each line of a PLY's header, and where in the file it ends."""
    lines: list[list[bytes]] = []
    with path.open("rb") as file:
        while (words := file.readline(4096).split()) and words[0] != b"end_header":
            lines.append(words)
        return lines, file.tell()


def _check_groups(path: Path, header: list[list[bytes]]) -> None:
    """Raise ValueError on a PLY with some of three properties that go together: open3d makes up the others."""
    names = {words[-1] for words in header if words[0] == b"property"}
    for group in GROUPS:
        there = [name for name in group.split() if name.encode() in names]
        if len(there) not in (0, 3):
            raise ValueError(f"{path} has {', '.join(there)} alone of {group}; all three are needed")


def _has_all_vertices(path: Path, header: list[list[bytes]], start: int) -> bool:
    """Say whether a PLY is long enough for its vertices; open3d makes up those that are not there.

    Its log alone tells where other elements come first, a property is a list, or the header is broken.
    """
    try:
        form = next(words[1] for words in header if words[0] == b"format")
        first = next(row for row, words in enumerate(header) if words[0] == b"element")
        rest = takewhile(lambda words: words[0] != b"element", header[first + 1 :])
        sizes = [SIZES[words[1].decode()] for words in rest if words[0] == b"property"]
        name, count = header[first][1], int(header[first][2])
    except (StopIteration, IndexError, KeyError, ValueError):
        return True
    if name != b"vertex":
        return True
    if form != b"ascii":
        return path.stat().st_size - start >= count * sum(sizes)
    missing = count * len(sizes)
    with path.open("rb") as file:
        file.seek(start)
        while missing > 0 and (line := file.readline()):
            missing -= len(line.split())
    return missing <= 0


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
        column = (column / np.iinfo(column.dtype).max).astype(np.float32)
    return column[:, 0] if column.shape[1:] == (1,) else column
