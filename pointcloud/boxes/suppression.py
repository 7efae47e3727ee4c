"""Non-maximum suppression of rotated boxes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointcloud.boxes.overlaps import overlaps_bev


def nms(
    boxes: Float[Tensor, "boxes 7"],
    scores: Float[Tensor, " boxes"],
    threshold: float,
    labels: Int[Tensor, " boxes"] | None = None,
) -> Int[Tensor, " kept"]:
    """Return the indices of the boxes to keep, by falling score; of equal scores the lower index comes first.

    A box goes if one with a better score that stays (of the same label, if labels are given) overlaps it, seen from
    above, by more than `threshold`.
    """
    order = scores.argsort(descending=True, stable=True)
    overlap = overlaps_bev(boxes[order], boxes[order]) > threshold
    if labels is not None:
        overlap &= labels[order, None] == labels[order]
    overlap = overlap.cpu().numpy()
    stays = np.ones(len(order), bool)
    for rank in range(len(order)):
        if stays[rank]:
            stays[rank + 1 :] &= ~overlap[rank, rank + 1 :]
    return order[torch.from_numpy(stays).to(order.device)]
