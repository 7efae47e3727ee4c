"""Small recordings of each kind, as bytes, made from the descriptions of the formats."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch

from pointcloud.events.files import write_events
from pointcloud.events.record import Events

WRITTEN = (".npz", ".raw", ".dat")


def some_events(count: int = 200, width: int = 34, height: int = 34, last: int = 500_000) -> Events:
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(last, (count,), generator=generator).sort().values
    x = torch.randint(width, (count,), generator=generator).int()
    y = torch.randint(height, (count,), generator=generator).int()
    return Events(t, x, y, torch.rand(count, generator=generator) < 0.5, width, height)


def nmnist(events: Events) -> bytes:
    rows = zip(*(getattr(events, name).tolist() for name in ("t", "x", "y", "polarity")), strict=True)
    return b"".join(struct.pack(">BBBH", x, y, polarity << 7 | t >> 16, t & 0xFFFF) for t, x, y, polarity in rows)


def aedat31(events: Events, packet: int = 64) -> bytes:
    content = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    for part in events.windows(count=packet):
        content += _packet(part)
    rest = len(events) % packet
    return content + _packet(events[len(events) - rest :]) if rest else content


def _packet(events: Events) -> bytes:
    head = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(events), len(events), len(events))
    rows = zip(*(getattr(events, name).tolist() for name in ("t", "x", "y", "polarity")), strict=True)
    return head + b"".join(struct.pack("<II", x << 17 | y << 2 | polarity << 1 | 1, t) for t, x, y, polarity in rows)


def npy(events: Events) -> bytes:
    whole = io.BytesIO()
    np.save(
        whole, np.stack([getattr(events, name).numpy().astype(np.int64) for name in ("t", "x", "y", "polarity")], 1)
    )
    return whole.getvalue()


def written(events: Events, path: Path) -> bytes:
    """Return the bytes of a file of the kind that the name says."""
    others = {".bin": nmnist, ".aedat": aedat31, ".npy": npy}
    if path.suffix in others:
        path.write_bytes(others[path.suffix](events))
    else:
        write_events(path, events)
    return path.read_bytes()
