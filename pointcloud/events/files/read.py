"""Read events from a file of any accepted kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointcloud.events.files.aedat import read_aedat
from pointcloud.events.files.arrays import read_arrays, read_hdf5
from pointcloud.events.files.columns import Columns
from pointcloud.events.files.nmnist import read_nmnist
from pointcloud.events.files.prophesee import read_dat, read_raw
from pointcloud.events.record import Events, sorted_events

READERS = {
    ".aedat": read_aedat,
    ".aedat4": read_aedat,
    ".raw": read_raw,
    ".dat": read_dat,
    ".bin": read_nmnist,
    ".npy": read_arrays,
    ".npz": read_arrays,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}
SUFFIXES = tuple(READERS)
LARGEST = 1 << 13  # pixels on a side
LATEST = 1 << 60  # microseconds


def read_events(path: str | Path, *, size: tuple[int, int] | None = None, sort: bool = False) -> Events:
    """Return the events of a file whose name ends with one of `SUFFIXES`.

    The sensor is as large as `size` (width, height) or else the file says, or else just holds all events. Files whose
    times fall are refused unless `sort` is given. FileNotFoundError without the file; ValueError if it has another
    name, is cut short, holds no events, fractions, events off the sensor or polarities beside 0, 1 and -1; ImportError
    that says what to install.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path} ends with {suffix or 'no suffix'}; accepted: {', '.join(SUFFIXES)}")
    return as_events(path, READERS[suffix](path), size, sort)


def as_events(path: Path, columns: Columns, size: tuple[int, int] | None, sort: bool) -> Events:
    """Return checked events of a file; ValueError with its name."""
    found = {name: getattr(columns, name) for name in ("t", "x", "y", "polarity")}
    if len({column.shape for column in found.values()}) != 1 or found["t"].ndim != 1:
        shapes = ", ".join(f"{name} {column.shape}" for name, column in found.items())
        raise ValueError(f"{path} must have one number of each kind for each event; found {shapes}")
    if not len(found["t"]):
        raise ValueError(f"{path} holds no events")
    t = _whole(path, "t", found["t"], LATEST)
    x, y = (_whole(path, name, found[name], 1 << 30).int() for name in "xy")
    values = np.unique(found["polarity"])
    if values.dtype.kind not in "biuf" or not np.isin(values, (-1, 0, 1)).all() or {-1, 0} <= set(values.tolist()):
        raise ValueError(f"{path} has polarities {values[:5].tolist()}; accepted: 0 and 1, or -1 and 1")
    width, height = size or columns.size or (int(x.max()) + 1, int(y.max()) + 1)
    if max(width, height) > LARGEST:
        raise ValueError(f"{path} has a sensor of {width} x {height} pixels; up to {LARGEST} a side are accepted")
    falls = int((t[1:] < t[:-1]).sum())
    if falls and not sort:
        raise ValueError(
            f"{path}: time runs backwards at {falls} of {len(t)} events; give sort=True (--sort) to order them"
        )
    try:
        return sorted_events(t, x, y, torch.from_numpy(found["polarity"] > 0), width, height)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _whole(path: Path, name: str, column: np.ndarray, most: int) -> Tensor:
    if column.dtype.kind not in "iuf" or not (np.abs(column.astype(np.float64)) < most).all():
        raise ValueError(f"{path} has {name} that are no numbers below {most} ({column.dtype}); is it another file?")
    whole = column.astype(np.int64)
    if column.dtype.kind == "f" and (whole != column).any():
        unit = "microseconds; multiply seconds by 1,000,000 and round" if name == "t" else "pixels; round them"
        raise ValueError(f"{path} has {name} like {column[whole != column][0]}; accepted: whole {unit}")
    return torch.from_numpy(whole)
