"""Corners of rotated boxes and the points inside them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def rotate(xy: Float[Tensor, "... 2"], angle: Float[Tensor, " ..."]) -> Float[Tensor, "... 2"]:
    """Turn vectors counter-clockwise by angles in radians."""
    x, y = xy.unbind(-1)
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)


def corners_bev(boxes: Float[Tensor, "boxes 7"]) -> Float[Tensor, "boxes 4 2"]:
    """Return the corners seen from above, counter-clockwise: front left, rear left, rear right, front right."""
    halves = boxes.new_tensor([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    return boxes[:, None, :2] + rotate(halves * boxes[:, None, 3:5], boxes[:, None, 6])


def corners(boxes: Float[Tensor, "boxes 7"]) -> Float[Tensor, "boxes 8 3"]:
    """Return the four lower corners in the order of `corners_bev`, then the upper ones above them."""
    around = corners_bev(boxes).repeat(1, 2, 1)
    half = boxes[:, 5] / 2
    lower, upper = boxes[:, 2] - half, boxes[:, 2] + half
    heights = torch.stack([lower, upper], 1).repeat_interleave(4, 1)
    return torch.cat([around, heights[..., None]], 2)


def points_in_boxes(xyz: Float[Tensor, "points 3"], boxes: Float[Tensor, "boxes 7"]) -> Bool[Tensor, "points boxes"]:
    """Return which points lie in which boxes; a face belongs to its box."""
    offsets = rotate(xyz[:, None, :2] - boxes[:, :2], -boxes[:, 6])
    inside = (offsets.abs() <= boxes[:, 3:5] / 2).all(-1)
    return inside & ((xyz[:, None, 2] - boxes[:, 2]).abs() <= boxes[:, 5] / 2)
