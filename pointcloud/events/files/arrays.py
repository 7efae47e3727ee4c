"""Events as arrays: `.npy`, `.npz`, and HDF5 as in DSEC and TUM-VIE."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from pointcloud.events.files.columns import Columns
from pointcloud.events.record import Events

NAMES = {"t": ("t", "ts", "timestamp"), "x": ("x", "xs"), "y": ("y", "ys"), "polarity": ("polarity", "p", "ps", "pol")}


def read_arrays(path: Path) -> Columns:
    """Return the events of a `.npy` (named columns, or t x y polarity) or `.npz` (an array a column); ValueError."""
    try:
        # Of a broken archive by its name, NumPy would leave the file open.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            table = loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # the header is Python, which may be broken in any way
        raise ValueError(f"{path} cannot be read as {path.suffix}, cut short or of another kind: {error}") from error
    if isinstance(table, np.ndarray):
        if table.dtype.names:
            table = {name: table[name] for name in table.dtype.names}
        elif table.ndim == 2 and table.shape[1] == 4:
            table = dict(zip(NAMES, table.T, strict=True))
        else:
            raise ValueError(f"{path} must have columns t x y polarity, found {table.dtype} {table.shape}")
    return _columns(path, table)


def _columns(path: Path, table: dict[str, np.ndarray]) -> Columns:
    found = {}
    for name, names in NAMES.items():
        there = [each for each in names if each in table]
        if not there:
            raise ValueError(f"{path} has no column {' or '.join(names)}; there are: {', '.join(table) or 'none'}")
        found[name] = table[there[0]]
    sides = [table[name] for name in ("width", "height") if name in table]
    try:
        size = (int(sides[0]), int(sides[1])) if len(sides) == 2 else None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} must have one whole number as width and one as height") from error
    return Columns(**found, size=size)


def write_npz(path: Path, events: Events) -> None:
    """Write an array for each field, packed."""
    whole = io.BytesIO()
    columns = {name: getattr(events, name).cpu().numpy() for name in NAMES}
    np.savez_compressed(whole, **columns, width=np.array(events.width), height=np.array(events.height))
    path.write_bytes(whole.getbuffer())


def read_hdf5(path: Path) -> Columns:
    """Return events/{t,x,y,p} of an HDF5 file, with t_offset added; ValueError, or ImportError without h5py."""
    try:
        import h5py
        import hdf5plugin  # noqa: F401  DSEC is packed with blosc
    except ImportError as error:
        raise ImportError('HDF5 needs h5py and hdf5plugin: pip install "visual-accel[events]"') from error
    try:
        with h5py.File(path, "r") as opened:
            file: Any = opened  # h5py's own types do not say what is where
            group = file["events"] if "events" in file else file
            sets = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}
            wanted = {each for names in NAMES.values() for each in names} | {"width", "height"}
            table = {name: np.asarray(item[()]) for name, item in sets.items() if name in wanted}
            offset = int(file["t_offset"][()]) if "t_offset" in file else 0
    except Exception as error:  # a broken file leads it anywhere
        raise ValueError(f"{path} cannot be read as HDF5, cut short or of another kind: {error}") from error
    if offset and "t" in table:
        table["t"] = table["t"].astype(np.float64 if table["t"].dtype.kind == "f" else np.int64) + offset
    return _columns(path, table)
