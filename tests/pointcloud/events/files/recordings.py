"""Small recordings of each kind, as bytes, made from the descriptions of the formats."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
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


def aedat4(events: Events, path: Path) -> None:
    """Write a file by its vendor's own library."""
    pytest.importorskip("aedat")
    vendor = pytest.importorskip("dv_processing")
    store = vendor.EventStore()
    for t, x, y, polarity in zip(events.t, events.x, events.y, events.polarity, strict=True):
        store.push_back(int(t), int(x), int(y), bool(polarity))
    form = vendor.io.MonoCameraWriter.EventOnlyConfig("DVS", (events.width, events.height))
    writer = vendor.io.MonoCameraWriter(str(path), form)
    writer.writeEvents(store)
    del writer


def hdf5(events: Events, path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    with h5py.File(path, "w") as file:
        for name, column in {"t": events.t, "x": events.x, "y": events.y, "p": events.polarity}.items():
            file.create_dataset(f"events/{name}", data=column.numpy(), compression="gzip", chunks=(64,))
        file["t_offset"] = 1000


def evt3(events: Events) -> bytes:
    """Return words: time high 0x8, time low 0x6, row 0x0, one pixel 0x2 with the polarity at bit 11."""
    pytest.importorskip("evt3")
    words = []
    for t, x, y, polarity in zip(
        *(getattr(events, name).tolist() for name in ("t", "x", "y", "polarity")), strict=True
    ):
        words += [0x8000 | t >> 12 & 0xFFF, 0x6000 | t & 0xFFF, y, 0x2000 | polarity << 11 | x]
    head = f"% evt 3.0\n% format EVT3;height={events.height};width={events.width}\n% end\n".encode()
    return head + struct.pack(f"<{len(words)}H", *words)


def npy(events: Events) -> bytes:
    whole = io.BytesIO()
    np.save(
        whole, np.stack([getattr(events, name).numpy().astype(np.int64) for name in ("t", "x", "y", "polarity")], 1)
    )
    return whole.getvalue()


def written(events: Events, path: Path) -> bytes:
    """Return the bytes of a file of the kind that the name says; `.evt3.raw` is EVT3."""
    others = {".bin": nmnist, ".aedat": aedat31, ".npy": npy}
    libraries = {".aedat4": aedat4, ".h5": hdf5}
    if path.name.endswith(".evt3.raw"):
        path.write_bytes(evt3(events))
    elif path.suffix in libraries:
        libraries[path.suffix](events, path)
    elif path.suffix in others:
        path.write_bytes(others[path.suffix](events))
    else:
        write_events(path, events)
    return path.read_bytes()
