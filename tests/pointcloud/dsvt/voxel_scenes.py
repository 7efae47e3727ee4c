"""Random voxels and small transformer configurations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pointcloud.dsvt import TINY, DSVTConfig, StageConfig
from pointcloud.voxels import VoxelGrid

FLAT = replace(TINY, channels=16, feed_forward=24, stages=(StageConfig(3, 10, (6, 6, 1), shift=(3, 3, 0)),))
TALL = DSVTConfig(
    VoxelGrid((0.0, 0.0, 0.0), (20.0, 18.0, 8.0), (1.0, 1.0, 1.0)),
    values=4,
    channels=16,
    heads=4,
    feed_forward=24,
    stages=(
        StageConfig(1, 12, (6, 6, 8), shift=(3, 3, 0), stride=(1, 1, 4)),
        StageConfig(2, 8, (6, 6, 2), shift=(3, 3, 0), stride=(2, 1, 2)),
        StageConfig(1, 6, (6, 6, 1), shift=(3, 3, 0)),
    ),
)


def random_voxels(shape: tuple[int, ...], count: int, batch_size: int = 2, seed: int = 0) -> Tensor:
    """Return at most `count` unique voxels (batch z y x) of a grid (x, y, z), in random order."""
    generator = torch.Generator().manual_seed(seed)
    extents = (batch_size, *reversed(shape))
    columns = [torch.randint(extent, (count, 1), generator=generator) for extent in extents]
    places = torch.cat(columns, 1).unique(dim=0).int()
    return places[torch.randperm(len(places), generator=generator)]
