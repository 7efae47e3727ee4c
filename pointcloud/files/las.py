"""LAS and LAZ of airborne and terrestrial surveys, by laspy."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

POINTS_AT_ONCE = 1 << 16  # so that memory is asked for points that are there, whatever a header says


def read_las(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz in float64, intensity as stored, label (the classification) and, if there, color in [0, 1].

    ValueError if the file is cut short or of another kind, ImportError that says what to install.
    """
    try:
        import laspy
        import lazrs  # noqa: F401  laspy decompresses with it
    except ImportError as error:
        raise ImportError(".las and .laz need laspy and lazrs: pip install laspy lazrs") from error
    _check_header(path)
    try:
        # Of its two backends the parallel one ends the process where a chunk says that it is huge.
        backend = laspy.LazBackend.Lazrs
        with path.open("rb") as file, laspy.LasReader(file, laz_backend=backend, read_evlrs=False) as reader:
            said, kinds = reader.header.point_count, set(reader.header.point_format.dimension_names)
            parts = list(reader.chunk_iterator(POINTS_AT_ONCE))
    except Exception as error:  # a broken file leads laspy anywhere
        raise ValueError(f"{path} cannot be read as {path.suffix}, cut short or of another kind: {error}") from error
    if sum(map(len, parts)) != said:
        raise ValueError(f"{path} is cut short: {sum(map(len, parts))} of {said} points are there")

    def column(name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(np.asarray(getattr(part, name)) for part in parts)])

    attributes = {
        "intensity": column("intensity").astype(np.float32),
        "label": column("classification").astype(np.int64),
    }
    if "red" in kinds:
        colors = np.stack([column(name) for name in ("red", "green", "blue")], 1)
        # The standard says 16 bits; many programs write 8.
        attributes["color"] = (colors / (65535 if colors.max(initial=0) > 255 else 255)).astype(np.float32)
    return np.stack([column(name) for name in "xyz"], 1), attributes


def _check_header(path: Path) -> None:
    """Raise ValueError where a header promises more than the file can hold: laspy would look for it for hours.

    Also of the chunks of a LAZ, for whose number lazrs asks so much memory that the process ends. Of the points of a
    LAZ it is enough to ask for few at once.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(255)
            if head[:4] != b"LASF":
                return  # laspy says it
            length, start, records, kind, point, points = struct.unpack_from("<HIIBHI", head, 94)
            if head[25] >= 4:  # since version 1.4
                points = struct.unpack_from("<Q", head, 247)[0]
            if length + 54 * records > min(start, size):
                raise ValueError(f"{path} is cut short or broken: it has no place for {records} records in its header")
            if kind < 64 and start + point * points > size:
                there = max(size - start, 0) // max(point, 1)
                raise ValueError(f"{path} is cut short: {there} of {points} points are there")
            if kind >= 64 and points:
                table = _number(file, "<q", start)
                chunks = _number(file, "<I", 4 + (table if table > 0 else _number(file, "<q", size - 8)))
                if chunks > size:
                    raise ValueError(f"{path} is cut short or broken: it has no place for {chunks} chunks of points")
    except (struct.error, OSError, OverflowError) as error:
        raise ValueError(f"{path} is cut short or broken: {error}") from error


def _number(file: BinaryIO, kind: str, place: int) -> int:
    file.seek(place)
    return struct.unpack(kind, file.read(struct.calcsize(kind)))[0]
