"""The spiking voxel backbone of detectors (E-3DSNN, arXiv 2412.07360): from points to a map seen from above."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from spconv.pytorch.core import SparseConvTensor
from torch import Tensor, nn

from pointcloud.e3dsnn.layers import Down, Fired, Stem
from pointcloud.nn import SparseConv3d
from pointcloud.scatter import scatter
from pointcloud.voxels import VoxelGrid, voxelise


class MeanVFE(nn.Module):
    """The mean of the values of a voxel's points, without weights, as published."""

    def __init__(self, grid: VoxelGrid, values: int) -> None:
        super().__init__()
        self.grid, self.values = grid, values

    def forward(
        self, points: Float[Tensor, "points values"], batch: Int[Tensor, " points"], batch_size: int
    ) -> tuple[Float[Tensor, "voxels values"], Int[Tensor, "voxels 4"]]:
        """Return features and coordinates (batch z y x) of voxels with points; ValueError where none is in the grid."""
        if points.shape[1] != self.values:
            raise ValueError(f"points have {points.shape[1]} values, this network takes {self.values}")
        found = voxelise(points[:, :3], batch, self.grid, batch_size)
        if not len(found.coordinates):
            raise ValueError(f"none of {len(points)} points is inside {self.grid.lower} to {self.grid.upper}")
        return scatter(points[found.kept], found.point_voxel, len(found.coordinates), "mean"), found.coordinates


class SpikingBackbone(nn.Module):
    """The stem, stages that halve the grid by 3x3x3 convolutions, and a last one that joins three layers to one.

    `continuous` names the layers that read real numbers; what comes out are potentials, real numbers too, so that a
    network behind it that has no neuron of its own does not spike.
    """

    continuous = ("stem.first",)

    def __init__(
        self,
        shape: tuple[int, int, int],
        values: int,
        stem: int,
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        joined: int,
        levels: int = 4,
    ) -> None:
        super().__init__()
        self.shape, self.values = list(reversed(shape)), values
        self.stem = Stem(values, stem, levels)
        inputs = (stem, *channels)
        self.stages = nn.ModuleList(
            Down(inputs[stage], wide, depths[stage], stage, levels, kernel=3) for stage, wide in enumerate(channels)
        )
        # spconv's annotation of the stride is too narrow: it takes one for each axis.
        stride: Any = (2, 1, 1)
        join = SparseConv3d(channels[-1], joined, (3, 1, 1), stride, bias=False, indice_key="join")
        self.join = Fired(join, joined, levels)

    def forward(
        self, features: Float[Tensor, "voxels values"], coordinates: Int[Tensor, "voxels 4"], batch_size: int
    ) -> tuple[Float[Tensor, "cells c"], Int[Tensor, "cells 4"]]:
        """Return the map's cells: all layers one behind the other, and coordinates (batch 0 y x)."""
        x = self.stem(SparseConvTensor(features, coordinates.int(), self.shape, batch_size))
        for stage in self.stages:
            x = stage(x)
        return flatten(self.join(x))


def flatten(x: SparseConvTensor) -> tuple[Float[Tensor, "cells c"], Int[Tensor, "cells 4"]]:
    """Return the columns of a sparse grid, each with the channels of its layers, 0 where a layer has no voxel."""
    layers, rows, columns = x.spatial_shape
    batch, z, row, column = x.indices.long().unbind(1)
    keys, cell = ((batch * rows + row) * columns + column).unique(return_inverse=True)
    channels = x.features.shape[1]
    wide = x.features.new_zeros(len(keys) * layers, channels)
    wide = wide.index_copy(0, cell * layers + z, x.features)
    where = keys // (rows * columns), torch.zeros_like(keys), keys // columns % rows, keys % columns
    return wide.view(len(keys), layers * channels), torch.stack(where, 1).int()
