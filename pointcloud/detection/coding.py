"""Boxes as the values that the head learns in the cell of their centre, and back."""

from __future__ import annotations

from math import pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointcloud.voxels import VoxelGrid


def cells_of(boxes: Float[Tensor, "boxes 7"], grid: VoxelGrid) -> Int[Tensor, "boxes 2"]:
    """Return row (y) and column (x) of the cells that hold the centres; they may lie outside the grid."""
    lower, size = boxes.new_tensor(grid.lower[:2]), boxes.new_tensor(grid.size[:2])
    return ((boxes[:, :2] - lower) / size).floor().long().flip(1)


def inside(cells: Int[Tensor, "boxes 2"], grid: VoxelGrid) -> Bool[Tensor, " boxes"]:
    """Return which cells the grid has."""
    return ((cells >= 0) & (cells < cells.new_tensor([grid.shape[1], grid.shape[0]]))).all(1)


def to_values(boxes: Float[Tensor, "boxes 7"], grid: VoxelGrid, axis: bool = False) -> Float[Tensor, "boxes values"]:
    """Return place in the cell (0 to 1), z in metres, logarithms of the sizes, cosine and sine of the heading.

    `axis` adds the cosine and sine of twice the heading, which are the same for front and back: ten values, not eight.
    """
    lower, size = boxes.new_tensor(grid.lower[:2]), boxes.new_tensor(grid.size[:2])
    place = (boxes[:, :2] - lower) / size
    heading = boxes[:, 6:]
    parts = [place - place.floor(), boxes[:, 2:3], boxes[:, 3:6].clamp(min=1e-2).log(), heading.cos(), heading.sin()]
    return torch.cat([*parts, (2 * heading).cos(), (2 * heading).sin()] if axis else parts, 1)


def to_boxes(
    values: Float[Tensor, "boxes values"], cells: Int[Tensor, "boxes 2"], grid: VoxelGrid
) -> Float[Tensor, "boxes 7"]:
    """Return the boxes that `to_values` was given; sizes are kept below 150 m, so that none overflows.

    Headings lie in [-pi, pi). Of ten values the last two say along which line an object stands, and the two before only
    which end is its front.
    """
    lower, size = values.new_tensor(grid.lower[:2]), values.new_tensor(grid.size[:2])
    centre = (cells.flip(1) + values[:, :2]) * size + lower
    cos, sin = values[:, 6:8].split(1, 1)
    heading = torch.atan2(sin, cos)
    if values.shape[1] > 8:
        line = torch.atan2(values[:, 9:], values[:, 8:9]) / 2
        heading = torch.where(cos * line.cos() + sin * line.sin() < 0, line + pi, line)
    heading = torch.where(heading >= pi, heading - 2 * pi, heading)
    return torch.cat([centre, values[:, 2:3], values[:, 3:6].clamp(-5, 5).exp(), heading], 1)
