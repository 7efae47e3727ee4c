"""Bare float32 rows of driving data sets: `.bin` as in KITTI, nuScenes or Waymo; SemanticKITTI's `.label`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pointcloud.files.tables import single_columns
from pointcloud.points import PointCloud

# What follows x y z. Intensity is left as it is in the file: 0 to 1 in KITTI, 0 to 255 in nuScenes. Waymo's rows are
# those of mmdetection3d, whose sixth number is one thing in one version and another in the next.
LAYOUTS = {
    "kitti": ("intensity",),
    "nuscenes": ("intensity", "ring"),
    "waymo": ("intensity", "elongation", "extra"),
}
LARGEST_INTENSITY = 65535  # that some point of a scan is at most


def check_layout(layout: str | None) -> None:
    """Raise ValueError on a name that is none of `LAYOUTS`; None stands for what a file's name says."""
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; accepted: {', '.join(LAYOUTS)}")


def read_scan(path: Path, layout: str | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz and attributes of a file in one of `LAYOUTS`: nuScenes if its name ends with `.pcd.bin`, else KITTI.

    ValueError on broken rows and, unless `layout` is given, where another layout alone gives likely intensities.
    """
    taken = layout or ("nuscenes" if path.name.lower().endswith(".pcd.bin") else "kitti")
    names = LAYOUTS[taken]
    size, width, numbers = path.stat().st_size, 3 + len(names), np.fromfile(path, "<f4")
    broken = size % (4 * width) != 0
    if broken or (layout is None and not _likely(numbers[3::width])):
        columns, found = " ".join(("x y z", *names)), _likely_layouts(numbers, size)
        hint = f"its rows may be those of {' or '.join(found)}" if found else f"there are {', '.join(LAYOUTS)}"
        if broken:
            raise ValueError(
                f"{path} has {size} bytes, no whole number of {4 * width}-byte rows ({columns}): cut short, or not "
                f"{taken}; {hint}: say which by --layout (in Python layout=)"
            )
        if found:
            raise ValueError(
                f"{path} does not look like {taken} ({columns}), as its intensities would be below 0, infinite or "
                f"huge; {hint}: say which by --layout (in Python layout=)"
            )
    rows = numbers.reshape(-1, width)
    attributes = dict(zip(names, rows[:, 3:].T, strict=True))
    # A ring is a number of a laser; what is no number stays for the check of all files.
    if np.isfinite(rows).all() and "ring" in attributes:
        attributes["ring"] = attributes["ring"].astype(np.int64)
    return rows[:, :3], attributes


def _likely(intensity: np.ndarray) -> bool:
    """Say whether numbers can be the intensities of a scan: finite, never below 0, and not all of them huge."""
    if not len(intensity):
        return True
    return bool(np.isfinite(intensity).all() and 0 <= intensity.min() <= LARGEST_INTENSITY)


def _likely_layouts(numbers: np.ndarray, size: int) -> list[str]:
    """Return the layouts whose rows fill a file of so many bytes, with likely intensities."""
    widths = {name: 3 + len(columns) for name, columns in LAYOUTS.items()}
    return [name for name, width in widths.items() if size % (4 * width) == 0 and _likely(numbers[3::width])]


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
