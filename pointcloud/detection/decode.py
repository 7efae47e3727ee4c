"""From the head's outputs to detections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pointcloud.boxes import Detections, nms
from pointcloud.detection.coding import to_boxes
from pointcloud.detection.head import HeadConfig
from pointcloud.voxels import VoxelGrid


def decode(
    outputs: dict[str, Float[Tensor, "batch _ y x"]],
    config: HeadConfig,
    grid: VoxelGrid,
    threshold: float | None = None,
) -> list[Detections]:
    """Return the detections of each sample.

    The `most_peaks` highest cells that are the largest of their 3x3 neighbours and at least `peak_threshold` become
    boxes. Their score is peak^(1 - a) IoU^a (CIA-SSD, arXiv 2012.03015), IoU predicted, a the class's rectifier. Those
    below `threshold` (by default `score_threshold`) go, then those that a better one of their class overlaps. A
    `threshold` that lower peaks than `peak_threshold` can reach lets these through.
    """
    heatmap = outputs["heatmap"].sigmoid()
    peaks = heatmap * (F.max_pool2d(heatmap, 3, 1, 1) == heatmap)
    count = min(config.most_peaks, peaks[0].numel())
    best, index = peaks.flatten(1).topk(count)
    labels, y, x = torch.unravel_index(index, peaks.shape[1:])
    sample = torch.arange(len(peaks), device=peaks.device)[:, None].expand_as(index)
    values = torch.cat([outputs[name][sample, :, y, x] for name in config.regression], 2)
    iou = ((outputs["iou"][sample, 0, y, x] + 1) / 2).clamp(0, 1)
    power = best.new_tensor(config.rectifier)[labels]
    scores = best ** (1 - power) * iou**power
    least = config.score_threshold if threshold is None else threshold
    lowest = best.new_tensor([_lowest_peak(config, a, threshold) for a in config.rectifier])[labels]
    found = []
    for number in range(len(peaks)):
        high = (scores[number] >= least) & (best[number] >= lowest[number])
        cells = torch.stack([y[number], x[number]], 1)[high]
        boxes = to_boxes(values[number][high], cells, grid)
        found.append(_suppress(Detections(boxes, scores[number][high], labels[number][high]), config))
    return found


def _lowest_peak(config: HeadConfig, rectifier: float, threshold: float | None) -> float:
    """Return the least peak of a class to look at: one with a predicted IoU of 1 has the score peak^(1 - a)."""
    if threshold is None:
        return config.peak_threshold
    return min(config.peak_threshold, threshold ** (1 / (1 - rectifier)) if rectifier < 1 else 0.0)


def _suppress(found: Detections, config: HeadConfig) -> Detections:
    """Return what no better one of its class overlaps, by falling score."""
    kept = []
    for label, overlap in enumerate(config.suppression):
        own = (found.labels == label).nonzero().flatten()
        kept.append(own[nms(found.boxes[own], found.scores[own], overlap)])
    rows = torch.cat(kept)
    return found[rows[found.scores[rows].argsort(descending=True, stable=True)]]
