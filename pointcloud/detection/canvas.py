"""From voxels to a picture seen from above."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from pointcloud.voxels import VoxelGrid


def to_bev(
    features: Float[Tensor, "voxels c"], coordinates: Int[Tensor, "voxels 4"], batch_size: int, grid: VoxelGrid
) -> Float[Tensor, "batch c ny nx"]:
    """Return the features on the ground plane of the grid, 0 where no voxel is, channels last in memory.

    ValueError when a voxel is not in the lowest layer: pool z away first.
    """
    if coordinates[:, 1].any():
        raise ValueError(f"a picture from above has one layer, got voxels with z up to {int(coordinates[:, 1].max())}")
    width, height = grid.shape[:2]
    batch, _, y, x = coordinates.long().unbind(1)
    cells = features.new_zeros(batch_size * height * width, features.shape[1])
    cells = cells.index_copy(0, (batch * height + y) * width + x, features)
    return cells.view(batch_size, height, width, -1).permute(0, 3, 1, 2)
