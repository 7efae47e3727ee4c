"""What a reader of one kind of file returns, before it is checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

MOST_LINES = 1000  # of a header


@dataclass(frozen=True)
class Columns:
    """Times in microseconds, pixels, polarity (1: brighter), and (width, height) if the file says it."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    polarity: np.ndarray
    size: tuple[int, int] | None = None


def read_header(file: BinaryIO, mark: bytes, end: bytes) -> list[str]:
    """Return the lines that begin with `mark`, up to one that begins with `end`; the file stands at what follows."""
    lines: list[str] = []
    while len(lines) < MOST_LINES:
        place = file.tell()
        line = file.readline(4096)
        if not line.startswith(mark):
            file.seek(place)
            break
        lines.append(line.decode("latin-1").strip())
        if line.startswith(end):
            break
    return lines


def size_in(lines: list[str]) -> tuple[int, int] | None:
    """Return width and height as Prophesee's headers say them, in one of three ways."""
    text = "\n".join(lines)
    geometry = re.search(r"geometry:?\s*(\d{1,6})x(\d{1,6})", text)
    if geometry:
        return int(geometry[1]), int(geometry[2])
    width, height = (re.search(rf"{name}[ =](\d{{1,6}})", text, re.IGNORECASE) for name in ("width", "height"))
    return (int(width[1]), int(height[1])) if width and height else None
