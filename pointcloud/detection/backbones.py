"""Backbones other than DSVT as data, and either of them with its voxel features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pointcloud.dsvt.backbone import DSVT
from pointcloud.dsvt.config import DSVTConfig
from pointcloud.dsvt.features import DynamicVFE
from pointcloud.voxels import VoxelGrid

LAYERS_JOINED = 3  # of the grid, by the last convolution, which goes on by two of them


@dataclass(frozen=True)
class SpikingConfig:
    """The voxel backbone of E-3DSNN (arXiv 2412.07360): a stem, stages that halve the grid, then layers are joined.

    `values` counts the numbers of a raw point, x y z included; `joined` are the channels of a layer at the end. Neurons
    send integers of 0 to `levels`; with 0 they are ReLUs. ValueError where the sizes do not fit each other.
    """

    grid: VoxelGrid
    values: int
    stem: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    joined: int
    levels: int = 4

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.depths) or not self.channels:
            raise ValueError(f"channels {self.channels} and depths {self.depths} must have one entry a stage, both")
        if min(self.values, self.stem, self.joined, *self.channels) < 1 or min(self.depths) < 0 or self.levels < 0:
            raise ValueError(f"values and channels must be 1 or more, depths and levels 0 or more, got {self}")
        if any(cells % self.stride for cells in self.grid.shape[:2]):
            raise ValueError(f"a grid of {self.grid.shape} voxels cannot be halved {len(self.channels)} times")
        if self._halved < LAYERS_JOINED:
            raise ValueError(
                f"a grid of {self.grid.shape} voxels has {self._halved} layers after {len(self.channels)} stages; "
                f"{LAYERS_JOINED} are needed: make voxels lower"
            )

    @property
    def stride(self) -> int:
        """Voxels of the grid to a cell of the map, along x and along y."""
        return 2 ** len(self.channels)

    @property
    def layers(self) -> int:
        """How many layers there are at the end, one behind the other in the map's channels."""
        return (self._halved - LAYERS_JOINED) // 2 + 1

    @property
    def width(self) -> int:
        """Channels of the map."""
        return self.layers * self.joined

    @property
    def _halved(self) -> int:
        return -(-self.grid.shape[2] // self.stride)


def map_grid(config: DSVTConfig | SpikingConfig) -> VoxelGrid:
    """Return the grid whose cells, seen from above, are those of the backbone's map."""
    if isinstance(config, DSVTConfig):
        return config.grid
    (x, y, _), lower, upper = config.grid.size, config.grid.lower, config.grid.upper
    return VoxelGrid(lower, upper, (x * config.stride, y * config.stride, upper[2] - lower[2]))


def make_backbone(config: DSVTConfig | SpikingConfig) -> tuple[nn.Module, nn.Module, int]:
    """Return voxel features, backbone, and channels of its map; ImportError where spikes lack the extra `points`."""
    if isinstance(config, DSVTConfig):
        return DynamicVFE(config.grid, config.values, config.channels), DSVT(config), config.channels
    # spconv is needed here alone: DSVT goes without it.
    from pointcloud.e3dsnn.backbone import MeanVFE, SpikingBackbone

    stages = config.channels, config.depths
    backbone = SpikingBackbone(config.grid.shape, config.values, config.stem, *stages, config.joined, config.levels)
    return MeanVFE(config.grid, config.values), backbone, config.width
