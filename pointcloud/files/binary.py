"""Bare float32 rows of driving data sets: KITTI's `.bin`, nuScenes' `.pcd.bin`; SemanticKITTI's `.label`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pointcloud.files.tables import single_columns
from pointcloud.points import PointCloud

# Intensity is left as it is in the file: 0 to 1 in KITTI, 0 to 255 in nuScenes.
LAYOUTS = {"kitti": ("intensity",), "nuscenes": ("intensity", "ring")}


def read_scan(path: Path, layout: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz and attributes of a file in one of `LAYOUTS`; ValueError on other layouts and on broken rows."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; accepted: {', '.join(LAYOUTS)}")
    names = LAYOUTS[layout]
    size, row = path.stat().st_size, 4 * (3 + len(names))
    if size % row:
        columns = " ".join(("x y z", *names))
        raise ValueError(
            f"{path} has {size} bytes, no whole number of {row}-byte rows ({columns}): cut short, or not {layout}"
        )
    rows = np.fromfile(path, "<f4").reshape(-1, 3 + len(names))
    attributes = dict(zip(names, rows[:, 3:].T, strict=True))
    # A ring is a number of a laser; what is no number stays for the check of all files.
    if np.isfinite(rows).all() and "ring" in attributes:
        attributes["ring"] = attributes["ring"].astype(np.int64)
    return rows[:, :3], attributes


def write_kitti(path: Path, cloud: PointCloud) -> None:
    """Write x y z intensity; ValueError without an intensity, or with an origin that float32 cannot hold."""
    if any(cloud.origin):
        raise ValueError(f"a KITTI file has no place for the origin {cloud.origin}; write .ply or .npy")
    path.write_bytes(single_columns(cloud, ("intensity",)).cpu().numpy().astype("<f4").tobytes())


def read_labels(path: str | Path, points: int | None = None) -> tuple[Int[Tensor, " points"], Int[Tensor, " points"]]:
    """Return label and instance of each point of a SemanticKITTI `.label` file (uint32: low and high 16 bits).

    ValueError if the file is cut short or has not as many rows as there are `points`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    if size % 4:
        raise ValueError(f"{path} has {size} bytes, no whole number of 4-byte labels: cut short, or no .label file")
    if points is not None and size != 4 * points:
        raise ValueError(f"{path} has {size // 4} labels for {points} points; give the file of the same scan")
    both = torch.from_numpy(np.fromfile(path, "<u4").astype(np.int64))
    return both & 0xFFFF, both >> 16
