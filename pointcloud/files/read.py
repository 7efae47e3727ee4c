"""Read a point cloud from a file of any accepted kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointcloud.files.binary import check_layout, read_scan
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

    Coordinates become float32, whole numbers int64; other attributes stay float64 or become float32. An axis on which
    most points are more than 8192 m away (map coordinates) is counted from an `origin` at the least whole metre of
    these. `layout` ("kitti", "nuscenes" or "waymo") says what the rows of a `.bin` hold, whatever its name tells, and
    of a file that ends with none of `SUFFIXES`. FileNotFoundError without the file; ValueError if it has another name,
    is cut short or empty, or has numbers that are NaN or infinite.
    """
    check_layout(layout)
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
    tensors = {name: _tensor(name, column) for name, column in attributes.items()}
    x, y, z = (_origin(column) for column in xyz.T)
    near = torch.from_numpy((xyz - np.array([x, y, z])).astype(np.float32))
    return PointCloud(near, tensors, (x, y, z))


def _origin(column: Float[np.ndarray, " points"]) -> float:
    """Return where an axis is counted from; a few points at 0 or far off, as some scanners write, move no others."""
    middle = np.quantile(column, 0.5, method="lower")  # one of the points, unlike the median
    if abs(middle) <= FAR:
        return 0.0
    return float(np.floor(column[np.abs(column - middle) <= FAR].min()))


def _read(path: Path, layout: str | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    suffix = path.suffix.lower()
    if suffix == ".bin" or (layout is not None and suffix not in READERS):
        return read_scan(path, layout)
    if suffix not in READERS:
        raise ValueError(f"{path} ends with {suffix or 'no suffix'}; accepted: {', '.join(SUFFIXES)}")
    return READERS[suffix](path)


def _tensor(name: str, column: np.ndarray) -> Tensor:
    """Return a column in int64, float32 or, as seconds of this century need it, float64."""
    if column.dtype.kind != "f":
        return torch.from_numpy(column.astype(np.int64))
    narrow = column.dtype.itemsize <= 4 or name in ("intensity", "elongation")
    return torch.from_numpy(column.astype(np.float32 if narrow else np.float64))
