"""Windows: which part of the grid a voxel is in, and where inside."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """One partition of the grid into windows of `size` (x, y, z)."""

    size: tuple[int, ...]
    index: Int[Tensor, " voxels"]  # flat number of the window, sample first, then x, y, z
    inside: Int[Tensor, "voxels 3"]  # place in the window, x y z


def split_windows(
    coordinates: Int[Tensor, "voxels 4"], shape: tuple[int, ...], size: tuple[int, ...], shift: tuple[int, ...]
) -> Windows:
    """Return the windows of voxels (batch z y x) in a grid of `shape` (DSVT, section 3.2).

    Coordinates are moved by `shift` first, for which every axis has one window more than it would need; an axis that
    one window spans is not moved.
    """
    window = coordinates[:, 0].long()
    inside = []
    for column, extent, length, step in zip((3, 2, 1), shape, size, shift, strict=True):
        moved = coordinates[:, column].long() + (step if column > 1 or extent != length else 0)
        window = window * (ceil(extent / length) + 1) + moved // length
        inside.append(moved % length)
    return Windows(tuple(size), window, torch.stack(inside, 1))
