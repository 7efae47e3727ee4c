"""N-MNIST's `.bin`: 40 bits an event (Orchard et al., Frontiers in Neuroscience 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointcloud.events.files.columns import Columns

SIZE = (34, 34)


def read_nmnist(path: Path) -> Columns:
    """Return the events of a file of N-MNIST; ValueError if it is cut short."""
    content = path.read_bytes()
    if len(content) % 5:
        raise ValueError(
            f"{path} has {len(content)} bytes, no whole number of 5-byte events: cut short, or not N-MNIST"
        )
    x, y, high, middle, low = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64).T
    return Columns((high & 0x7F) << 16 | middle << 8 | low, x, y, high >> 7, SIZE)
