"""Write PLY, with NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointcloud.points import PointCloud

TYPES = {"<f4": "float", "<f8": "double", "<i4": "int", "|u1": "uchar"}
NAMES = {"color": ("red", "green", "blue"), "normal": ("nx", "ny", "nz")}
OWN = {name: attribute for attribute, names in NAMES.items() for name in names}


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Write a binary PLY: colours as bytes, whole numbers as int32 (float64 if they are too large for it).

    Of other attributes float64 stays and all else becomes float32. Coordinates are float64 if there is an origin. An
    attribute of several columns gets a property for each. ValueError if two properties would have the same name, or an
    attribute one of those, is complex or has no columns.
    """
    xyz = cloud.xyz.cpu().numpy()
    columns = dict(zip("xyz", (xyz + np.asarray(cloud.origin) if any(cloud.origin) else xyz).T, strict=True))
    for name, values in cloud.attributes.items():
        if name in OWN:
            raise ValueError(f"{path} keeps {name} for {OWN[name]}; rename that attribute")
        if values.is_complex() or values.numel() == 0:
            raise ValueError(
                f"{path} takes real numbers for each point, got {name} {values.dtype} {tuple(values.shape)}"
            )
        more = _columns(name, _stored(name, values))
        if columns.keys() & more.keys():
            raise ValueError(
                f"{path} cannot have two properties {', '.join(columns.keys() & more.keys())}; rename {name}"
            )
        columns |= more
    table = np.empty(len(cloud), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    properties = (f"property {TYPES[column.dtype.str]} {name}" for name, column in columns.items())
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}", *properties, "end_header", ""]
    path.write_bytes("\n".join(header).encode() + table.tobytes())


def _columns(name: str, stored: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns by their names in the file: colours and normals have their own, others may not have spaces."""
    own, names = "_".join(name.split()), NAMES.get(name, ())
    if len(stored) != len(names):
        names = [own] if len(stored) == 1 else [f"{own}_{number}" for number in range(len(stored))]
    return dict(zip(names, stored, strict=True))


def _stored(name: str, values: Tensor) -> np.ndarray:
    """Return an attribute's columns in one of `TYPES`."""
    values = values.cpu().flatten(1).T if values.ndim > 1 else values.cpu()[None]
    if name == "color" and len(values) == 3:
        if values.dtype == torch.uint8:  # bytes already
            return values.numpy()
        return (values.float().clamp(0, 1) * 255).round().numpy().astype("u1")
    if values.dtype == torch.bool:
        values = values.to(torch.uint8)
    if values.dtype == torch.float64:  # a time in seconds, which float32 would round to minutes
        return values.numpy().astype("<f8")
    if values.is_floating_point():
        return values.float().numpy().astype("<f4")
    small = torch.iinfo(torch.int32)
    fits = int(values.min()) >= small.min and int(values.max()) <= small.max
    return values.numpy().astype("<i4" if fits else "<f8")
