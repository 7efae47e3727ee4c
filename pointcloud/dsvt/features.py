"""Dynamic voxel features: a small PointNet in every voxel, with no cap on points or voxels."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pointcloud.scatter import scatter
from pointcloud.voxels import VoxelGrid, voxelise


class PointLayer(nn.Module):
    """Linear, BatchNorm and ReLU on points, and the maximum of each voxel."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs, eps=1e-3, momentum=0.01)

    def forward(
        self, x: Float[Tensor, "points inputs"], voxel: Int[Tensor, " points"], voxels: int
    ) -> tuple[Float[Tensor, "points outputs"], Float[Tensor, "voxels outputs"]]:
        x = self.norm(self.linear(x)).relu()
        return x, scatter(x, voxel, voxels, "max")


class DynamicVFE(nn.Module):
    """Features of a voxel from its points' values, their offsets from its mean point and from its centre.

    Two point layers; the first one's voxel maximum joins its points (dynamic voxelisation: MVF, arXiv 1910.06528). The
    published pillar and voxel variants differ in the z of the centre only, and not where a pillar
    is one voxel high. ValueError when no point is inside the grid.
    """

    def __init__(self, grid: VoxelGrid, values: int, channels: int):
        super().__init__()
        self.grid, self.values = grid, values
        self.pfn_layers = nn.ModuleList([PointLayer(values + 6, channels // 2), PointLayer(channels, channels)])

    def forward(
        self, points: Float[Tensor, "points values"], batch: Int[Tensor, " points"], batch_size: int
    ) -> tuple[Float[Tensor, "voxels c"], Int[Tensor, "voxels 4"]]:
        """Return features and coordinates (batch z y x) of the voxels that hold points."""
        if points.shape[1] != self.values:
            raise ValueError(f"points have {points.shape[1]} values, this network takes {self.values}")
        found = voxelise(points[:, :3], batch, self.grid, batch_size)
        if not len(found.coordinates):
            raise ValueError(f"none of {len(points)} points is inside {self.grid.lower} to {self.grid.upper}")
        points, voxel, voxels = points[found.kept], found.point_voxel, len(found.coordinates)
        xyz = points[:, :3]
        mean = scatter(xyz, voxel, voxels, "mean")
        x = torch.cat([points, xyz - mean[voxel], xyz - self._centres(found.coordinates, xyz)[voxel]], 1)
        x, largest = self.pfn_layers[0](x, voxel, voxels)
        _, largest = self.pfn_layers[1](torch.cat([x, largest[voxel]], 1), voxel, voxels)
        return largest, found.coordinates

    def _centres(self, coordinates: Int[Tensor, "voxels 4"], like: Tensor) -> Float[Tensor, "voxels 3"]:
        size, lower = like.new_tensor(self.grid.size), like.new_tensor(self.grid.lower)
        return (coordinates[:, [3, 2, 1]] + 0.5) * size + lower
