"""Write a point cloud to a file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pointcloud.files.binary import write_kitti
from pointcloud.files.ply import write_ply
from pointcloud.files.replacing import replacing
from pointcloud.files.tables import write_npy
from pointcloud.points import PointCloud

WRITERS = {".ply": write_ply, ".npy": write_npy, ".bin": write_kitti}


def write_points(path: str | Path, cloud: PointCloud) -> None:
    """Write `.ply` (all attributes), `.npy` (x y z, intensity and what may follow it) or KITTI's `.bin`.

    The file appears under its name when it is complete. FileNotFoundError without its folder, ValueError on any other
    name, without points, or if the kind of file cannot hold them.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS or path.name.lower().endswith(".pcd.bin"):
        raise ValueError(f"{path} cannot be written; accepted: {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first")
    if len(cloud) == 0:
        raise ValueError(f"there are no points to write to {path}")
    with replacing(path) as temporary:
        WRITERS[suffix](temporary, cloud)
