"""The losses of the head: heatmap, boxes, their overlap, and the prediction of that overlap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pointcloud.boxes import overlaps_3d
from pointcloud.detection.coding import to_boxes
from pointcloud.detection.head import HeadConfig
from pointcloud.detection.targets import Targets
from pointcloud.voxels import VoxelGrid


def focal_loss(
    logits: Float[Tensor, "batch classes y x"], heatmap: Float[Tensor, "batch classes y x"]
) -> Float[Tensor, ""]:
    """Return the penalty-reduced focal loss per object (CornerNet, equation 1: alpha 2, beta 4)."""
    peak, probability = heatmap == 1, logits.sigmoid()
    found = (1 - probability) ** 2 * F.logsigmoid(logits)
    empty = probability**2 * (1 - heatmap) ** 4 * F.logsigmoid(-logits)
    return -torch.where(peak, found, empty).sum() / peak.sum().clamp(min=1)


def distance_iou_loss(a: Float[Tensor, "boxes 7"], b: Float[Tensor, "boxes 7"]) -> Float[Tensor, " boxes"]:
    """Return 1 - DIoU (arXiv 1911.08287) of pairs as if all headings were 0: intersection over union less the squared
    distance of centres over the squared diagonal of what encloses both."""
    low_a, high_a, low_b, high_b = (box[:, :3] + sign * box[:, 3:6] / 2 for box in (a, b) for sign in (-1, 1))
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
    union = a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - shared
    diagonal = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).square().sum(1)
    return 1 - shared / union + (a[:, :3] - b[:, :3]).square().sum(1) / diagonal


def detection_losses(
    outputs: dict[str, Float[Tensor, "batch _ y x"]], targets: Targets, config: HeadConfig, grid: VoxelGrid
) -> dict[str, Float[Tensor, ""]]:
    """Return the weighted losses, whose sum is to be minimised.

    `heatmap`: focal loss. `boxes`: L1 of the values at the cells of true centres. `overlap`: 1 - DIoU there.
    `iou`: L1 between the IoU branch and 2 IoU - 1, where IoU is the one of volumes, headings included, of true and
    decoded box, through which no gradient flows. All are means over objects.
    """
    sample, y, x = targets.cells.unbind(1)
    values = torch.cat([outputs[name][sample, :, y, x] for name in config.regression], 1)
    boxes = to_boxes(values, targets.cells[:, 1:], grid)
    objects = max(len(boxes), 1)
    with torch.no_grad():
        iou = overlaps_3d(boxes, targets.boxes).diagonal()
    said = outputs["iou"][sample, 0, y, x]
    return {
        "heatmap": focal_loss(outputs["heatmap"], targets.heatmap),
        "boxes": config.box_weight * (values - targets.values).abs().sum() / objects,
        "overlap": config.box_weight * distance_iou_loss(boxes, targets.boxes).sum() / objects,
        "iou": (said - (2 * iou - 1)).abs().sum() / objects,
    }
