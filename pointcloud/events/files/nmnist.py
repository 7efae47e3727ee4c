"""N-MNIST's `.bin`: 40 bits an event (Orchard et al., Frontiers in Neuroscience 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointcloud.events.files.columns import Columns

SIZE = (34, 34)
OVERFLOW = 240  # in place of y, in no sensor of that format: the clock has begun anew
LAP = 13  # bits of microseconds


def read_nmnist(path: Path) -> Columns:
    """Return the events of a file of N-MNIST; ValueError if it is cut short.

    Rows that mark an overflow of the clock are no events, as in the authors' `eventvision.read_dataset`.
    """
    content = path.read_bytes()
    if len(content) % 5:
        raise ValueError(
            f"{path} has {len(content)} bytes, no whole number of 5-byte events: cut short, or not N-MNIST"
        )
    x, y, high, middle, low = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64).T
    marks = y == OVERFLOW
    time = ((high & 0x7F) << 16 | middle << 8 | low) + (np.cumsum(marks) << LAP)
    return Columns(time[~marks], x[~marks], y[~marks], (high >> 7)[~marks], SIZE)
