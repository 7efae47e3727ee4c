"""Points to voxels, with or without caps.

Voxel coordinates are int32 rows [batch, z, y, x], spconv's order; sizes, bounds and shapes of a grid are x y z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor


@dataclass(frozen=True)
class VoxelGrid:
    """A box of equal voxels, x y z in metres; ValueError if it does not hold a whole number of them on each axis."""

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    size: tuple[float, float, float]

    def __post_init__(self) -> None:
        for axis, lower, upper, size in zip("xyz", self.lower, self.upper, self.size, strict=True):
            if size <= 0:
                raise ValueError(f"the voxel size along {axis} must be above 0, got {size}")
            count = (upper - lower) / size
            if round(count) < 1 or abs(count - round(count)) > 1e-3:
                raise ValueError(f"{axis} holds {count:.3f} voxels from {lower} to {upper}, not a whole number of them")

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many voxels there are along x, y and z."""
        x, y, z = (round((b - a) / size) for a, b, size in zip(self.lower, self.upper, self.size, strict=True))
        return x, y, z


class Voxels(NamedTuple):
    """The voxels with points in them, and the points that lie in the grid.

    `kept` are the rows of these points, `point_voxel` the voxel of each of them.
    """

    coordinates: Int32[Tensor, "voxels 4"]
    point_voxel: Int64[Tensor, " kept"]
    kept: Int64[Tensor, " kept"]
    counts: Int64[Tensor, " voxels"]


class CappedVoxels(NamedTuple):
    """Voxels with up to so many points each; places without a point are 0."""

    values: Float[Tensor, "voxels places values"]
    coordinates: Int32[Tensor, "voxels 4"]
    counts: Int64[Tensor, " voxels"]


def voxelise(xyz: Float[Tensor, "points 3"], batch: Int[Tensor, " points"], grid: VoxelGrid, batch_size: int) -> Voxels:
    """Return the voxels in ascending order of (batch, x, y, z), all their points with them (dynamic voxelisation).

    Points outside the grid are left out; if all are, there are no voxels. ValueError on NaN and on a sample that is not
    in [0, batch_size). Source: DSVT, arXiv 2301.06051, and the order of its published code.
    """
    _check(xyz, batch, batch_size)
    lower, size, shape = (xyz.new_tensor(values) for values in (grid.lower, grid.size, grid.shape))
    place = ((xyz - lower) / size).floor()
    # Compared as floats: a far point would overflow an integer.
    kept = ((place >= 0) & (place < shape)).all(1).nonzero().flatten()
    nx, ny, nz = grid.shape
    x, y, z = place[kept].long().unbind(1)
    key = ((batch[kept].long() * nx + x) * ny + y) * nz + z
    unique, point_voxel, counts = key.unique(return_inverse=True, return_counts=True)
    columns = unique // (nx * ny * nz), unique % nz, unique // nz % ny, unique // (ny * nz) % nx
    return Voxels(torch.stack(columns, 1).int(), point_voxel, kept, counts)


def voxelise_capped(
    points: Float[Tensor, "points values"],
    batch: Int[Tensor, " points"],
    grid: VoxelGrid,
    batch_size: int,
    points_per_voxel: int,
    most_voxels: int,
) -> CappedVoxels:
    """Return the first `most_voxels` voxels of each sample with their first `points_per_voxel` points (hard form).

    The first three values are x y z. Voxels come sample by sample in the order of their first points, as from spconv's
    `PointToVoxel`. ValueError as from `voxelise`, and on a cap below 1.
    """
    if points_per_voxel < 1 or most_voxels < 1:
        raise ValueError(f"both caps must be at least 1, got {points_per_voxel} and {most_voxels}")
    coordinates, point_voxel, kept, counts = voxelise(points[:, :3], batch, grid, batch_size)
    order = point_voxel.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    ranks = torch.arange(len(order), device=order.device) - starts.repeat_interleave(counts)
    rows = _first_come(order[starts], coordinates[:, 0].long(), batch_size, most_voxels)
    new_row = torch.full_like(counts, -1)
    new_row[rows] = torch.arange(len(rows), device=rows.device)
    target = new_row.repeat_interleave(counts)
    taken = (target >= 0) & (ranks < points_per_voxel)
    values = points.new_zeros(len(rows), points_per_voxel, points.shape[1])
    values[target[taken], ranks[taken]] = points[kept[order[taken]]]
    return CappedVoxels(values, coordinates[rows], counts[rows].clamp(max=points_per_voxel))


def _first_come(
    first_point: Int[Tensor, " voxels"], sample: Int[Tensor, " voxels"], batch_size: int, most: int
) -> Int[Tensor, " chosen"]:
    """Return the voxels of each sample whose first points come first, at most so many of one sample."""
    by_point = first_point.argsort()
    order = by_point[sample[by_point].argsort(stable=True)]
    counts = torch.bincount(sample, minlength=batch_size)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < most]


def _check(xyz: Tensor, batch: Tensor, batch_size: int) -> None:
    if xyz.ndim != 2 or xyz.shape[1] != 3 or batch.shape != xyz.shape[:1]:
        raise ValueError(f"xyz must be (points 3), batch (points); got {tuple(xyz.shape)} and {tuple(batch.shape)}")
    if xyz.isnan().any():
        raise ValueError(f"{int(xyz.isnan().any(1).sum())} of {len(xyz)} points are NaN; remove them")
    if len(batch) and (batch.min() < 0 or batch.max() >= batch_size):
        raise ValueError(
            f"batch must be in [0, {batch_size}), the number of samples; got {int(batch.min())} to {int(batch.max())}"
        )
