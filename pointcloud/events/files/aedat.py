"""AEDAT: 3.1 by us, as iniVation describes it, and 4 by the package aedat, in a process of its own."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pointcloud.events.files.columns import Columns, read_header

PACKET = struct.Struct("<hhiiiiii")  # kind, source, size, place of the time, overflow, capacity, number, valid
POLARITY = 1
PROCESS = Path(__file__).with_name("aedat4_process.py")
SIZES = {"DVS128": (128, 128), "DAVIS240": (240, 180), "DAVIS346": (346, 260)}


def read_aedat(path: Path) -> Columns:
    """Return the events of an `.aedat` or `.aedat4`; ValueError if it is cut short or of another version."""
    with path.open("rb") as file:
        version = file.readline(64).strip()
        if version == b"#!AER-DAT4.0":
            return _read_4(path)
        if version != b"#!AER-DAT3.1":
            said = version.decode("latin-1") if version.startswith(b"#!") else "no version"
            raise ValueError(f"{path} begins with {said!r}; AEDAT 3.1 and 4.0 are read")
        lines = read_header(file, b"#", b"#!END-HEADER")
        content = file.read()
    size = next((SIZES[name] for name in SIZES if any(name in line for line in lines)), None)
    return _read_31(path, content, size)


def _read_31(path: Path, content: bytes, size: tuple[int, int] | None) -> Columns:
    place, parts = 0, [np.zeros((2, 0), np.int64)]
    while place < len(content):
        if place + PACKET.size > len(content):
            raise ValueError(f"{path} is cut short within the head of a packet")
        kind, _, width, _, overflow, capacity, number, _ = PACKET.unpack_from(content, place)
        place += PACKET.size
        if not (0 <= number <= capacity and width > 0 and overflow >= 0 and place + width * capacity <= len(content)):
            raise ValueError(
                f"{path} is cut short or broken: a packet has no place for {number} events of {width} bytes"
            )
        if kind == POLARITY:
            if width != 8:
                raise ValueError(f"{path} has changes of {width} bytes; those of AEDAT 3.1 have 8")
            words, t = np.frombuffer(content, "<u4", 2 * number, place).reshape(-1, 2).astype(np.int64).T
            parts.append(np.stack([words, t + (overflow << 31)])[:, words & 1 == 1])
        place += width * capacity
    words, t = np.concatenate(parts, 1)
    return Columns(t, words >> 17, words >> 2 & 0x7FFF, words >> 1 & 1, size)


def _read_4(path: Path) -> Columns:
    if importlib.util.find_spec("aedat") is None:
        raise ImportError('AEDAT 4 needs aedat: pip install "visual-accel[events]"')
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "events.npy"
        command = [sys.executable, "-P", PROCESS, path.resolve(), target]  # our aedat.py stands beside it
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"the decoder ended with {done.returncode}"])[-1]
            raise ValueError(f"{path} cannot be read as AEDAT 4, cut short or of another kind: {said}")
        rows = np.load(target, allow_pickle=False)
    streams, width, height = map(int, done.stdout.split())
    if streams != 1:
        raise ValueError(f"{path} has {streams} streams of events; files with one are read")
    return Columns(rows["t"], rows["x"], rows["y"], rows["on"], (width, height))
