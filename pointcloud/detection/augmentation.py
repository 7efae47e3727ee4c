"""Random changes of a scene that leave it a likely one."""

from __future__ import annotations

from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from pointcloud.boxes.geometry import rotate


def augment(
    points: Float[Tensor, "points values"],
    boxes: Float[Tensor, "boxes 7"],
    generator: torch.Generator | None = None,
    largest_turn: float = pi / 4,
    largest_scaling: float = 0.05,
    both_axes: bool = True,
) -> tuple[Float[Tensor, "points values"], Float[Tensor, "boxes 7"]]:
    """Mirror at the x axis and, with `both_axes`, at the y axis, each half of the time, turn about z and scale alike.

    Scans of KITTI have to stay in front of the sensor: there only the x axis is one to mirror at.
    """
    mirror_y, mirror_x, turn, scaling = torch.rand(4, generator=generator).tolist()
    points, boxes = points.clone(), boxes.clone()
    if mirror_y < 0.5:
        points[:, 1], boxes[:, 1], boxes[:, 6] = -points[:, 1], -boxes[:, 1], -boxes[:, 6]
    if both_axes and mirror_x < 0.5:
        points[:, 0], boxes[:, 0], boxes[:, 6] = -points[:, 0], -boxes[:, 0], pi - boxes[:, 6]
    angle = (2 * turn - 1) * largest_turn
    for rows in (points, boxes):
        rows[:, :2] = rotate(rows[:, :2], rows.new_full((len(rows),), angle))
    boxes[:, 6] = (boxes[:, 6] + angle + pi) % (2 * pi) - pi
    factor = 1 + (2 * scaling - 1) * largest_scaling
    points[:, :3] *= factor
    boxes[:, :6] *= factor
    return points, boxes
