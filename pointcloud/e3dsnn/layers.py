"""The layers of E-3DSNN (arXiv 2412.07360): a neuron, a convolution that reads its spikes, normalisation."""

from __future__ import annotations

from typing import Literal

import torch
from spconv.pytorch.core import SparseConvTensor
from torch import nn

from pointcloud.nn import IntegerLIF, Rectified, SparseConv3d, SparseInverseConv3d, SpikingLayer, SubMConv3d


def neuron(levels: int) -> IntegerLIF | Rectified:
    """Return what fires integers of 0 to `levels`, or with 0 levels a ReLU."""
    return IntegerLIF(levels) if levels else Rectified()


def norm(channels: int) -> nn.BatchNorm1d:
    """Return the normalisation, with the published constants."""
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


def submanifold(channels_in: int, channels: int, key: str) -> SubMConv3d:
    """Return a 3x3x3 convolution that leaves the voxels where they are, with the published first weights."""
    layer = SubMConv3d(channels_in, channels, 3, bias=False, indice_key=key)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    return layer


class Fired(nn.Module):
    """A neuron, a layer that reads its spikes, and the normalisation of what comes out: the next potential."""

    def __init__(self, layer: nn.Module, channels: int, levels: int) -> None:
        super().__init__()
        self.spiking, self.norm = SpikingLayer(neuron(levels), layer, stateful=False), norm(channels)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Return the normalised output of the layer."""
        out, _ = self.spiking(x)
        return out.replace_feature(self.norm(out.features))


class Stem(nn.Module):
    """Three convolutions at the finest grid; the first one reads real numbers and not spikes."""

    def __init__(self, values: int, channels: int, levels: int) -> None:
        super().__init__()
        self.first, self.norm = submanifold(values, channels, "stem"), norm(channels)
        self.rest = nn.Sequential(*(Fired(submanifold(channels, channels, "stem"), channels, levels) for _ in range(2)))

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Return the potential of the first stage."""
        x = self.first(x)
        return self.rest(x.replace_feature(self.norm(x.features)))


class Block(nn.Module):
    """Three convolutions in two steps, each added to the potential before it, so that nothing but spikes is read."""

    def __init__(self, channels: int, key: str, levels: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            Fired(submanifold(channels, channels, key), channels, levels) for _ in range(3)
        )

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Return the potential after both steps."""
        first = self.first(x)  # it knows the neighbours of voxels, which all three convolutions share
        x = first.replace_feature(x.features + first.features)
        return x.replace_feature(x.features + self.third(self.second(x)).features)


class Down(nn.Sequential):
    """A stage: the grid is halved, by a `kernel` of 2, or of 3 as in detectors, then `depth` blocks share one."""

    def __init__(
        self, channels_in: int, channels: int, depth: int, stage: int, levels: int, kernel: Literal[2, 3] = 2
    ) -> None:
        halve = SparseConv3d(channels_in, channels, kernel, 2, kernel - 2, bias=False, indice_key=f"down{stage}")
        blocks = (Block(channels, f"stage{stage}", levels) for _ in range(depth))
        super().__init__(Fired(halve, channels, levels), *blocks)


class Up(nn.Module):
    """Back to the grid before a stage, and two linear maps that merge what the encoder had there, beside a shortcut."""

    def __init__(self, channels_in: int, skip: int, channels: int, stage: int, levels: int) -> None:
        super().__init__()
        self.up = Fired(
            SparseInverseConv3d(channels_in, channels, 2, bias=False, indice_key=f"down{stage}"), channels, levels
        )
        self.merge = nn.Sequential(
            FiredRows(channels + skip, channels, levels),
            FiredRows(channels, channels, levels),
        )

    def forward(self, x: SparseConvTensor, skip: SparseConvTensor) -> SparseConvTensor:
        """Return the potential at the voxels of `skip`."""
        x = self.up(x)
        return x.replace_feature(x.features + self.merge(torch.cat([x.features, skip.features], 1)))


class FiredRows(nn.Module):
    """The same as Fired with a linear map of each voxel for a layer."""

    def __init__(self, channels_in: int, channels: int, levels: int) -> None:
        super().__init__()
        layer = nn.Linear(channels_in, channels)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
        self.spiking, self.norm = SpikingLayer(neuron(levels), layer, stateful=False), norm(channels)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the normalised output of the map, (voxels channels)."""
        return self.norm(self.spiking(rows)[0])
