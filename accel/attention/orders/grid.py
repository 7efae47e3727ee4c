"""Orders of a latent grid whose native order is frame by frame, row by row."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from accel.attention.call import Geometry


def with_text(order: Int[Tensor, " v"], geometry: Geometry) -> Int[Tensor, " s"]:
    """Return the order of the whole sequence, text left where it is, from one of the video tokens."""
    text = torch.arange(geometry.text_length)
    if geometry.text_position == "first":
        return torch.cat([text, order + geometry.text_length])
    if geometry.text_position == "last":
        return torch.cat([order, text + geometry.video_tokens])
    return order


def native(geometry: Geometry) -> Int[Tensor, " s"]:
    """Return the identity."""
    return torch.arange(geometry.tokens)


def token_major(geometry: Geometry, first_frame: bool = False) -> Int[Tensor, " s"]:
    """Return the order in which one pixel's tokens of all frames are neighbours (Sparse VideoGen, section 4.2).

    With `first_frame` the first frame stays together, ahead of the others.
    """
    tokens = torch.arange(geometry.video_tokens).view(geometry.frames, geometry.frame_tokens)
    ahead = int(first_frame)
    return with_text(torch.cat([tokens[:ahead].flatten(), tokens[ahead:].T.flatten()]), geometry)


def tiles(geometry: Geometry, tile: tuple[int, int, int]) -> Int[Tensor, " s"]:
    """Return the order in which tiles of (frames, rows, columns) are contiguous; ragged at the far borders.

    Source: Sliding Tile Attention, section 3.1.
    """
    axes = (torch.arange(n) // size for n, size in zip(_grid(geometry), tile, strict=True))
    t, y, x = torch.meshgrid(*axes, indexing="ij")
    number = (t * (geometry.height + 1) + y) * (geometry.width + 1) + x
    return with_text(torch.argsort(number.flatten(), stable=True), geometry)


def _grid(geometry: Geometry) -> tuple[int, int, int]:
    return geometry.frames, geometry.height, geometry.width
