"""Sizes of the published networks and of our small one; every grid shape follows from range and voxel size."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from pointcloud.voxels import VoxelGrid


@dataclass(frozen=True)
class StageConfig:
    """Blocks that share a grid; triples are voxels along x, y, z.

    Blocks alternate between two window configurations: `window` unshifted, and `window` times `hybrid`, shifted by
    `shift`. `stride` is that of the attention pooling after the stage; (1, 1, 1) means none. ValueError on sizes < 1
    and on shifts beyond the larger windows, which number one window more than an axis needs, not two.
    """

    blocks: int
    set_size: int
    window: tuple[int, int, int]
    hybrid: tuple[int, int, int] = (2, 2, 1)
    shift: tuple[int, int, int] = (6, 6, 0)
    stride: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self) -> None:
        if min(self.blocks, self.set_size, *self.window, *self.hybrid, *self.stride) < 1 or min(self.shift) < 0:
            raise ValueError(f"sizes must be at least 1 and shifts at least 0, got {self}")
        large, shift = self.configurations[1]
        if any(step > size for step, size in zip(shift, large, strict=True)):
            raise ValueError(f"shifts must be at most window times hybrid, {large}, got {shift}; give smaller ones")

    @property
    def configurations(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Window and shift of even and of odd blocks."""
        large = tuple(size * factor for size, factor in zip(self.window, self.hybrid, strict=True))
        return (self.window, (0, 0, 0)), (large, self.shift)

    @property
    def pooled(self) -> bool:
        """Whether a pooling follows."""
        return self.stride != (1, 1, 1)


@dataclass(frozen=True)
class DSVTConfig:
    """A backbone and its voxel features.

    `values` counts the numbers of a raw point, x y z included. `published_position_index` keeps the indexing slip that
    all published results were made with (see `positions`); `mask_empty_slots` departs from them in pooling.
    ValueError when channels do not divide by heads or no stage is given.
    """

    grid: VoxelGrid
    values: int
    channels: int
    heads: int
    feed_forward: int
    stages: tuple[StageConfig, ...]
    published_position_index: bool = True
    mask_empty_slots: bool = False

    def __post_init__(self) -> None:
        if self.channels % self.heads or self.channels % 2:
            raise ValueError(f"channels must be even and a multiple of heads, got {self.channels} and {self.heads}")
        if not self.stages:
            raise ValueError("a network needs at least one stage")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The grid (x, y, z) of each stage, and after the last pooling."""
        shapes = [tuple(self.grid.shape)]
        for stage in self.stages:
            shapes.append(tuple(ceil(size / step) for size, step in zip(shapes[-1], stage.stride, strict=True)))
        return tuple(shapes)


def _waymo(height: float, stages: tuple[StageConfig, ...]) -> DSVTConfig:
    grid = VoxelGrid((-74.88, -74.88, -2.0), (74.88, 74.88, 4.0), (0.32, 0.32, height))
    return DSVTConfig(grid, 5, 192, 8, 384, stages)


WAYMO_PILLAR = _waymo(6.0, (StageConfig(4, 36, (12, 12, 1)),))
WAYMO_VOXEL = _waymo(
    0.1875,
    (
        StageConfig(1, 48, (12, 12, 32), stride=(1, 1, 4)),
        StageConfig(1, 48, (12, 12, 8), stride=(1, 1, 4)),
        StageConfig(1, 48, (12, 12, 2), stride=(1, 1, 2)),
        StageConfig(1, 48, (12, 12, 1)),
    ),
)
NUSCENES_PILLAR = DSVTConfig(
    VoxelGrid((-54.0, -54.0, -5.0), (54.0, 54.0, 3.0), (0.3, 0.3, 8.0)),
    values=5,
    channels=128,
    heads=8,
    feed_forward=256,
    stages=(StageConfig(4, 90, (30, 30, 1), hybrid=(1, 1, 1), shift=(15, 15, 0)),),
)
TINY = DSVTConfig(
    VoxelGrid((-38.4, -38.4, -2.0), (38.4, 38.4, 4.0), (0.48, 0.48, 6.0)),
    values=4,
    channels=64,
    heads=4,
    feed_forward=128,
    stages=(StageConfig(2, 24, (12, 12, 1)),),
)
