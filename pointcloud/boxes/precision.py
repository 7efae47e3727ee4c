"""Precision, recall and average precision of detections of one class over many scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointcloud.boxes.overlaps import overlaps_bev


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of the best 1, 2, ... predictions, their scores, and the area under the curve.

    Predictions that matched an ignored truth are left out. Without a truth to find, `average_precision` is NaN.
    """

    precision: Float[Tensor, " predictions"]
    recall: Float[Tensor, " predictions"]
    scores: Float[Tensor, " predictions"]
    average_precision: float


def average_precision(
    predictions: Sequence[tuple[Float[Tensor, "_ 7"], Float[Tensor, " _"]]],
    truths: Sequence[tuple[Float[Tensor, "_ 7"], Bool[Tensor, " _"]]],
    threshold: float = 0.5,
    overlaps: Callable[[Tensor, Tensor], Tensor] = overlaps_bev,
) -> PrecisionRecall:
    """Compare (boxes, scores) with (boxes, ignored) of the same scenes; ValueError if their numbers differ.

    Within a scene, predictions by falling score each take the truth that overlaps them most among those still free and
    overlapping by at least `threshold`, an ignored one only if no other is left (the matching of COCO). One that takes
    an ignored truth is neither right nor wrong. The area is exact under the falling envelope of precision (all points).
    """
    if len(predictions) != len(truths):
        raise ValueError(f"{len(predictions)} scenes with predictions but {len(truths)} with truths; give one each")
    outcomes, scores = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0)]
    for (boxes, found_scores), (true_boxes, ignored) in zip(predictions, truths, strict=True):
        order = found_scores.argsort(descending=True, stable=True)
        outcomes.append(_match(overlaps(boxes[order], true_boxes).cpu(), ignored.cpu(), threshold))
        scores.append(found_scores[order].cpu())
    right, score = torch.cat(outcomes), torch.cat(scores)
    right, score = right[right >= 0], score[right >= 0]
    order = score.argsort(descending=True, stable=True)
    hits = right[order].cumsum(0).double()
    total = sum(int((~ignored).sum()) for _, ignored in truths)
    precision = hits / torch.arange(1, len(hits) + 1)
    recall = hits / max(total, 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    area = float((envelope * recall.diff(prepend=recall.new_zeros(1))).sum())
    return PrecisionRecall(precision, recall, score[order], area if total else float("nan"))


def _match(
    overlaps: Float[Tensor, "predictions truths"], ignored: Bool[Tensor, " truths"], threshold: float
) -> Int[Tensor, " predictions"]:
    """Return 1 for right, 0 for wrong, -1 for neither, per prediction by falling score."""
    outcomes = torch.zeros(len(overlaps), dtype=torch.int64)
    free = torch.ones_like(ignored)
    for prediction, row in enumerate(overlaps):
        for candidates, outcome in ((free & ~ignored, 1), (free & ignored, -1)):
            near = candidates & (row >= threshold)
            if near.any():
                free[row.where(near, -1).argmax()] = False
                outcomes[prediction] = outcome
                break
    return outcomes
