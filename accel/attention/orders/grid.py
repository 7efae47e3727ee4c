"""Orders of a latent grid whose native order is frame by frame, row by row."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from accel.attention.call import Geometry


def whole_order(order: Int[Tensor, " v"], geometry: Geometry) -> Int[Tensor, " s"]:
    """Return the order of the whole sequence from one of the video tokens; all other rows stay where they are."""
    whole = native(geometry)
    whole[geometry.video] = order + geometry.video.start
    return whole


def native(geometry: Geometry) -> Int[Tensor, " s"]:
    """Return the identity."""
    return torch.arange(geometry.tokens)


def token_major(geometry: Geometry, first_frame: bool = False) -> Int[Tensor, " s"]:
    """Return the order in which one pixel's tokens of all frames are neighbours (Sparse VideoGen, section 4.2).

    With `first_frame` the first frame stays together, ahead of the others.
    """
    tokens = torch.arange(geometry.video_tokens).view(geometry.frames, geometry.frame_tokens)
    ahead = int(first_frame)
    return whole_order(torch.cat([tokens[:ahead].flatten(), tokens[ahead:].T.flatten()]), geometry)


def tiles(geometry: Geometry, tile: tuple[int, int, int]) -> Int[Tensor, " s"]:
    """Return the order in which tiles of (frames, rows, columns) are contiguous; ragged at the far borders.

    Source: Sliding Tile Attention, section 3.1.
    """
    axes = (torch.arange(n) // size for n, size in zip(geometry.grid, tile, strict=True))
    t, y, x = torch.meshgrid(*axes, indexing="ij")
    number = (t * (geometry.height + 1) + y) * (geometry.width + 1) + x
    return whole_order(torch.argsort(number.flatten(), stable=True), geometry)
