"""Tables with a point in each row: `.npy` and `.xyz` (text)."""

from __future__ import annotations

import io
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointcloud.points import PointCloud

# After x y z, as in OpenPCDet's frames of the Waymo data set.
COLUMNS = ("intensity", "elongation", "no_label_zone")


def read_npy(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz and the attributes of a float array with 3 to 6 columns: x y z, then `COLUMNS`."""
    try:
        table = np.load(path, allow_pickle=False)
    except Exception as error:  # the header is Python, which may be broken in any way
        raise ValueError(f"{path} cannot be read as .npy, it is cut short or of another kind: {error}") from error
    if not isinstance(table, np.ndarray) or table.dtype.kind != "f" or table.ndim != 2 or not 3 <= table.shape[1] <= 6:
        found = f"{table.dtype} {table.shape}" if isinstance(table, np.ndarray) else "an archive"
        raise ValueError(f"{path} must hold floats (points, 3 to 6): x y z {' '.join(COLUMNS)}; found {found}")
    return table[:, :3], dict(zip(COLUMNS, table[:, 3:].T, strict=False))


def write_npy(path: Path, cloud: PointCloud) -> None:
    """Write x y z and as many of `COLUMNS`, from the first, as there are.

    As float64 where there is an origin or a float64 attribute among them, else as float32.
    """
    names = tuple(takewhile(cloud.attributes.__contains__, COLUMNS))
    table = single_columns(cloud, names).cpu().numpy()
    wide = [name for name in names if cloud.attributes[name].dtype == torch.float64]
    if any(cloud.origin) or wide:
        table = table.astype(np.float64)
        table[:, :3] += cloud.origin
    for name in wide:
        table[:, 3 + names.index(name)] = cloud.attributes[name].cpu().flatten().numpy()
    whole = io.BytesIO()
    np.save(whole, table)
    path.write_bytes(whole.getbuffer())


def single_columns(cloud: PointCloud, names: tuple[str, ...]) -> Float[Tensor, "points columns"]:
    """Return x y z and attributes with one number a point; ValueError on others, which would move those behind them."""
    for name in names:
        if name in cloud.attributes and cloud.attributes[name][:1].numel() != 1:
            shape = tuple(cloud.attributes[name].shape)
            raise ValueError(
                f"{name} must have one number for each point in this kind of file, got {shape}; write .ply"
            )
    return cloud.values(names)


def read_xyz(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the first three columns of a text file and, if it has four, the last as intensity.

    Columns beyond four have no agreed meaning and are left out. Lines may be empty or begin with #.
    """
    with path.open(encoding="latin-1") as file:
        if not any(line.partition("#")[0].strip() for line in file):
            return np.zeros((0, 3)), {}  # of which NumPy would warn
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as rows of numbers x y z: {error}") from error
    if table.size and table.shape[1] < 3:
        raise ValueError(f"{path} has {table.shape[1]} columns; at least x y z are needed")
    return table[:, :3].reshape(-1, 3), {"intensity": table[:, 3]} if table.shape[1] == 4 else {}
