"""Prophesee's `.raw` (EVT2 by us, EVT3 by the package evt3) and `.dat`, as its manual describes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointcloud.events.files.columns import Columns, read_header, size_in
from pointcloud.events.record import Events

OFF, ON, TIME_HIGH = 0, 1, 8  # kinds of EVT2's words
PLAIN_CHANGES = (0, 12)  # kinds of events in a .dat that are changes of brightness


def read_raw(path: Path) -> Columns:
    """Return the events of a `.raw` file; ValueError if it is cut short, or of neither EVT2 nor EVT3."""
    with path.open("rb") as file:
        lines = read_header(file, b"%", b"% end")
        content = file.read()
    text = "\n".join(lines).lower()
    if "evt 3.0" in text or "format evt3" in text:
        return _read_evt3(path, content, size_in(lines))
    if "evt 2.0" not in text and "format evt2;" not in text + ";":
        raise ValueError(f"{path} does not say in its header that it is EVT2 or EVT3; other forms of .raw are not read")
    return _read_evt2(path, content, size_in(lines))


def _read_evt2(path: Path, content: bytes, size: tuple[int, int] | None) -> Columns:
    if len(content) % 4:
        raise ValueError(f"{path} has {len(content)} bytes of events, no whole number of 4-byte words: cut short")
    words = np.frombuffer(content, "<u4").astype(np.int64)
    kind = words >> 28
    high = np.where(kind == TIME_HIGH, words & 0xFFFFFFF, 0)
    said = np.flatnonzero(kind == TIME_HIGH)
    # Of 34 bits of microseconds, which begin again after four hours and three quarters.
    turns = np.concatenate([np.zeros(min(len(said), 1), np.int64), np.cumsum(np.diff(high[said]) < -(1 << 27))])
    base = (high[said] + (turns << 28)) << 6
    rows = np.flatnonzero(kind <= ON)
    latest = np.searchsorted(said, rows) - 1
    rows, latest = rows[latest >= 0], latest[latest >= 0]  # before the first of these no time is known
    words = words[rows]
    return Columns(base[latest] + (words >> 22 & 0x3F), words >> 11 & 0x7FF, words & 0x7FF, kind[rows], size)


def _read_evt3(path: Path, content: bytes, size: tuple[int, int] | None) -> Columns:
    try:
        import evt3
    except ImportError as error:
        raise ImportError('.raw in EVT3 needs evt3: pip install "visual-accel[events]"') from error
    if len(content) % 2:
        raise ValueError(f"{path} has {len(content)} bytes of events, no whole number of 2-byte words: cut short")
    width, height = size or (1280, 720)
    if not (0 < width < 1 << 16 and 0 < height < 1 << 16):
        raise ValueError(f"{path} says that its sensor has {width} x {height} pixels")
    try:
        events = evt3.decode_bytes(content, sensor_width=width, sensor_height=height)
    except Exception as error:  # a broken file leads it anywhere
        raise ValueError(f"{path} cannot be read as EVT3, cut short or of another kind: {error}") from error
    return Columns(events.t.astype(np.int64), events.x, events.y, events.p, (width, height))


def read_dat(path: Path) -> Columns:
    """Return the events of a `.dat` file; ValueError if it is cut short or holds other events.

    A time that falls by more than half of its 32 bits means that these have begun again, as they do after 71.6 minutes;
    one that rises by as much lies before that.
    """
    with path.open("rb") as file:
        lines = read_header(file, b"%", b"% end")
        kind = file.read(2)
        content = file.read()
    if len(kind) < 2 or kind[0] not in PLAIN_CHANGES or kind[1] != 8:
        raise ValueError(
            f"{path} says {kind.hex() or 'nothing'} after its header; only changes of 8 bytes are read (0c08)"
        )
    if len(content) % 8:
        raise ValueError(f"{path} has {len(content)} bytes of events, no whole number of 8-byte events: cut short")
    t, words = np.frombuffer(content, "<u4").reshape(-1, 2).astype(np.int64).T
    change = np.diff(t, prepend=t[:1])
    turns = np.cumsum((change < -(1 << 31)).astype(np.int64) - (change > 1 << 31))
    return Columns(t + (turns << 32), words & 0x3FFF, words >> 14 & 0x3FFF, words >> 28, size_in(lines))


def write_dat(path: Path, events: Events) -> None:
    """Write a `.dat`; ValueError on times that its 32 bits cannot hold."""
    _check_range(path, events, 32, 14)
    words = events.x.numpy().astype("<u4") | events.y.numpy().astype("<u4") << 14
    words |= events.polarity.numpy().astype("<u4") << 28
    header = (
        f"% Data file containing CD events.\n% Version 2\n% Height {events.height}\n% Width {events.width}\n% end\n"
    )
    path.write_bytes(header.encode() + b"\x0c\x08" + np.stack([events.t.numpy().astype("<u4"), words], 1).tobytes())


def write_evt2(path: Path, events: Events) -> None:
    """Write a `.raw` in EVT2; ValueError on times or pixels that its words cannot hold."""
    _check_range(path, events, 34, 11)
    t = events.t.numpy()
    words = t % 64 << 22 | events.x.numpy().astype(np.int64) << 11 | events.y.numpy() | events.polarity.numpy() << 28
    first = np.flatnonzero(np.diff(t >> 6, prepend=-1))
    words = np.insert(words, first, TIME_HIGH << 28 | t[first] >> 6).astype("<u4")
    header = f"% evt 2.0\n% format EVT2;height={events.height};width={events.width}\n"
    path.write_bytes(f"{header}% geometry {events.width}x{events.height}\n% end\n".encode() + words.tobytes())


def _check_range(path: Path, events: Events, time_bits: int, pixel_bits: int) -> None:
    if len(events) and not 0 <= int(events.t[0]) <= int(events.t[-1]) < 1 << time_bits:
        raise ValueError(
            f"{path} takes times from 0 to {1 << time_bits} microseconds; write .npz, or count from the first"
        )
    if max(events.width, events.height) > 1 << pixel_bits:
        raise ValueError(f"{path} takes sensors up to {1 << pixel_bits} pixels a side; write .npz")
