"""Read a point cloud from a file of any accepted kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointcloud.files.binary import read_scan
from pointcloud.files.las import read_las
from pointcloud.files.open3d_formats import read_open3d
from pointcloud.files.tables import read_npy, read_xyz
from pointcloud.points import PointCloud

SUFFIXES = (".bin", ".pcd.bin", ".npy", ".xyz", ".ply", ".pcd", ".las", ".laz")
READERS = {
    ".npy": read_npy,
    ".xyz": read_xyz,
    ".ply": read_open3d,
    ".pcd": read_open3d,
    ".las": read_las,
    ".laz": read_las,
}
# Up to here steps of float32 are finer than a millimetre.
FAR = 8192.0
# From here on float32 may be infinite, when an origin is taken off.
INFINITE = 1e38


def read_points(path: str | Path, layout: str | None = None) -> PointCloud:
    """Return the points of a file whose name ends with one of `SUFFIXES`.

    Floats become float32, whole numbers int64. An axis on which most points are more than 8192 m away (map coordinates)
    is counted from an `origin` at the least whole metre of these. `layout` ("kitti" or "nuscenes") overrides what the
    name says. FileNotFoundError without the file; ValueError if it has another name, is cut short or empty, or has
    numbers that are NaN or infinite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    xyz, attributes = _read(path, layout)
    if len(xyz) == 0:
        raise ValueError(f"{path} holds no points")
    for name, column in {"xyz": xyz, **attributes}.items():
        bad = ~(np.abs(column) < INFINITE).reshape(len(xyz), -1).all(1)
        if bad.any():
            raise ValueError(f"{path} has NaN or infinity in {name} of {bad.sum()} of {len(xyz)} points; remove them")
    tensors = {name: _tensor(column) for name, column in attributes.items()}
    x, y, z = (_origin(column) for column in xyz.T)
    return PointCloud(_tensor(xyz - np.array([x, y, z])), tensors, (x, y, z))


def _origin(column: Float[np.ndarray, " points"]) -> float:
    """Return where an axis is counted from; a few points at 0 or far off, as some scanners write, move no others."""
    middle = np.quantile(column, 0.5, method="lower")  # one of the points, unlike the median
    if abs(middle) <= FAR:
        return 0.0
    return float(np.floor(column[np.abs(column - middle) <= FAR].min()))


def _read(path: Path, layout: str | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    suffix = path.suffix.lower()
    if layout is not None or suffix == ".bin":
        return read_scan(path, layout or ("nuscenes" if path.name.lower().endswith(".pcd.bin") else "kitti"))
    if suffix not in READERS:
        raise ValueError(f"{path} ends with {suffix or 'no suffix'}; accepted: {', '.join(SUFFIXES)}")
    return READERS[suffix](path)


def _tensor(column: np.ndarray) -> Tensor:
    return torch.from_numpy(column.astype(np.float32 if column.dtype.kind == "f" else np.int64))
