"""What the head should say: peaks where objects are, and the values of their boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointcloud.detection.coding import cells_of, inside, to_values
from pointcloud.detection.head import HeadConfig
from pointcloud.voxels import VoxelGrid


@dataclass(frozen=True)
class Targets:
    """Heatmaps of a batch; for every object its cell (sample, y, x), the values to learn there, and its box."""

    heatmap: Float[Tensor, "batch classes y x"]
    cells: Int[Tensor, "objects 3"]
    values: Float[Tensor, "objects values"]
    boxes: Float[Tensor, "objects 7"]


def peak_radius(
    length: Float[Tensor, " boxes"], width: Float[Tensor, " boxes"], overlap: float
) -> Float[Tensor, " boxes"]:
    """Return by how much corners may move with an IoU of `overlap` left, in the unit of the sizes.

    The least of three cases (CornerNet, section 3.2). As in CenterPoint, whose peaks these are, each quadratic's root
    is divided by 2 and not by twice its leading factor.
    """
    total, area = length + width, length * width
    cases = (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, area * (1 - overlap)),
        (4 * overlap, -2 * overlap * total, area * (overlap - 1)),
    )
    return torch.stack([(b + (b * b - 4 * a * c).clamp(min=0).sqrt()) / 2 for a, b, c in cases]).amin(0)


def draw_heatmap(
    boxes: Float[Tensor, "boxes 7"], labels: Int[Tensor, " boxes"], config: HeadConfig, grid: VoxelGrid
) -> Float[Tensor, "classes y x"]:
    """Return the largest of the Gaussians of all boxes, each exactly 1 in its centre's cell and 0 beyond its radius."""
    columns, rows = grid.shape[:2]
    heatmap = boxes.new_zeros(len(config.classes), rows, columns)
    size = boxes[:, 3:5] / boxes.new_tensor(grid.size[:2])
    radius = peak_radius(size[:, 0], size[:, 1], config.peak_overlap).long().clamp(min=config.fewest_cells)[:, None]
    y, x = cells_of(boxes, grid).split(1, 1)
    slopes = []
    for centre, count in ((y, rows), (x, columns)):
        away = torch.arange(count, device=boxes.device) - centre
        fall = torch.exp(-(away**2) / (2 * ((2 * radius + 1) / 6) ** 2))
        slopes.append(fall * (away.abs() <= radius))
    for label, row, column in zip(labels.tolist(), *slopes, strict=True):
        heatmap[label] = torch.maximum(heatmap[label], torch.outer(row, column))
    return heatmap


def make_targets(
    boxes: list[Float[Tensor, "_ 7"]], labels: list[Int[Tensor, " _"]], config: HeadConfig, grid: VoxelGrid
) -> Targets:
    """Return the targets of a batch from the boxes of each sample, less those whose centre is outside the grid."""
    heatmaps, cells, kept = [], [], []
    for sample, (own, classes) in enumerate(zip(boxes, labels, strict=True)):
        there = inside(cells_of(own, grid), grid)
        own = own[there]
        heatmaps.append(draw_heatmap(own, classes[there], config, grid))
        cells.append(torch.nn.functional.pad(cells_of(own, grid), (1, 0), value=sample))
        kept.append(own)
    all_boxes = torch.cat(kept)
    return Targets(torch.stack(heatmaps), torch.cat(cells), to_values(all_boxes, grid, config.axis), all_boxes)
