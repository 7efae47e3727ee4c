"""The residual 2-D backbone that reads the map seen from above at several scales, as in DSVT (arXiv 2301.06051)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class BEVConfig:
    """One entry a scale: its further blocks, stride, channels, and how it is brought back to the input's size."""

    blocks: tuple[int, ...] = (1, 2, 2)
    strides: tuple[int, ...] = (1, 2, 2)
    filters: tuple[int, ...] = (128, 128, 256)
    upsample: tuple[int, ...] = (1, 2, 4)
    upsample_filters: tuple[int, ...] = (128, 128, 128)

    def __post_init__(self) -> None:
        if self.upsample != tuple(accumulate(self.strides, mul)):
            raise ValueError(f"upsample {self.upsample} does not undo the strides {self.strides}; give their products")
        lengths = {len(self.blocks), len(self.strides), len(self.filters), len(self.upsample_filters)}
        if len(lengths) > 1:
            raise ValueError("blocks, strides, filters and upsample_filters differ in length; give one entry a scale")


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where `shortcut` is on."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            _norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            _norm(channels),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), _norm(channels))
            if shortcut
            else nn.Identity()
        )

    def forward(self, x: Float[Tensor, "batch channels_in y x"]) -> Float[Tensor, "batch channels y_out x_out"]:
        """Return the sum of both ways, rectified."""
        return torch.relu(self.body(x) + self.shortcut(x))


class BEVBackbone(nn.Module):
    """Residual blocks at falling resolution; every scale is brought back to the first and all are concatenated."""

    def __init__(self, config: BEVConfig, channels_in: int) -> None:
        super().__init__()
        self.scales, self.upsamplings = nn.ModuleList(), nn.ModuleList()
        inputs = (channels_in, *config.filters)
        for scale, channels in enumerate(config.filters):
            first = ResidualBlock(inputs[scale], channels, config.strides[scale], shortcut=True)
            more = (ResidualBlock(channels, channels) for _ in range(config.blocks[scale]))
            self.scales.append(nn.Sequential(first, *more))
            factor, wide = config.upsample[scale], config.upsample_filters[scale]
            up = nn.ConvTranspose2d(channels, wide, factor, factor, bias=False)
            self.upsamplings.append(nn.Sequential(up, _norm(wide), nn.ReLU()))
        self.channels = sum(config.upsample_filters)

    def forward(self, x: Float[Tensor, "batch channels_in y x"]) -> Float[Tensor, "batch channels y x"]:
        """Return all scales at the input's size, which the largest `upsample` must divide."""
        parts = []
        for scale, up in zip(self.scales, self.upsamplings, strict=True):
            x = scale(x)
            parts.append(up(x))
        return torch.cat(parts, 1)
