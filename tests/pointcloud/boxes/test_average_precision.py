"""Average precision by hand and against a naive implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointcloud.boxes import average_precision, overlaps_3d, overlaps_bev
from tests.pointcloud.boxes.test_boxes import random_boxes


def row_of(*places: float) -> Tensor:
    """Return boxes of 2 x 2 m at places along x."""
    boxes = torch.zeros(len(places), 7)
    boxes[:, 0] = torch.tensor(places)
    boxes[:, 3:6] = 2
    return boxes


def seen(*ignored: bool) -> Tensor:
    return torch.tensor(ignored, dtype=torch.bool)


def test_by_hand() -> None:
    # Scores over both scenes: .9 right, .8 wrong, .7 right, .6 wrong (its truth is taken), one truth is missed.
    predictions = [
        (row_of(0, 50, 0.1), torch.tensor([0.9, 0.8, 0.6])),
        (row_of(10.2), torch.tensor([0.7])),
    ]
    truths = [(row_of(0, 20), seen(False, False)), (row_of(10), seen(False))]
    result = average_precision(predictions, truths)
    assert result.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert result.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert result.recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert result.average_precision == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)


def test_a_truth_is_matched_once_and_by_the_better_score() -> None:
    predictions = [(row_of(0.5, 0), torch.tensor([0.9, 0.4]))]
    result = average_precision(predictions, [(row_of(0), seen(False))])
    assert result.precision.tolist() == [1, 0.5] and result.average_precision == 1


def test_ignored_truths_make_predictions_neither_right_nor_wrong() -> None:
    predictions = [(row_of(0, 30), torch.tensor([0.9, 0.8]))]
    truths = [(row_of(0, 30), seen(True, False))]
    result = average_precision(predictions, truths)
    assert result.scores.tolist() == pytest.approx([0.8]) and result.average_precision == 1
    # A real truth is taken even where an ignored one overlaps more.
    both = average_precision([(row_of(0), torch.ones(1))], [(row_of(0, 0.3), seen(True, False))])
    assert both.average_precision == 1


def test_the_threshold_is_that_of_the_overlap() -> None:
    shifted = row_of(0.5)  # 1.5 / 2.5 = 0.6
    for threshold, expected in ((0.59, 1), (0.61, 0)):
        result = average_precision([(shifted, torch.ones(1))], [(row_of(0), seen(False))], threshold)
        assert result.average_precision == expected
    lifted = row_of(0)
    lifted[:, 2] = 1.5
    predictions, truths = [(lifted, torch.ones(1))], [(row_of(0), seen(False))]
    assert average_precision(predictions, truths, 0.5).average_precision == 1
    assert average_precision(predictions, truths, 0.5, overlaps_3d).average_precision == 0


def test_nothing_found_and_nothing_to_find() -> None:
    none = (row_of(), torch.zeros(0))
    assert average_precision([none], [(row_of(0), seen(False))]).average_precision == 0
    assert math.isnan(average_precision([none], [(row_of(), seen())]).average_precision)
    assert math.isnan(average_precision([], []).average_precision)
    alone = average_precision([(row_of(1), torch.ones(1))], [(row_of(), seen())])
    assert alone.precision.tolist() == [0] and math.isnan(alone.average_precision)
    with pytest.raises(ValueError, match="1 scenes with predictions but 0 with truths; give one each"):
        average_precision([none], [])


def naive(predictions: list, truths: list, threshold: float) -> float:
    """Return the mean over all recalls that the truths allow of the best precision at that recall or above."""
    total = sum(int((~ignored).sum()) for _, ignored in truths)
    ranked = sorted(
        (-float(score), scene, index)
        for scene, (_, scores) in enumerate(predictions)
        for index, score in enumerate(scores)
    )
    taken: set[tuple[int, int]] = set()
    points, right, counted = [], 0, 0
    for _, scene, index in ranked:
        (boxes, ignored), box = truths[scene], predictions[scene][0][index]
        free = [j for j in range(len(boxes)) if (scene, j) not in taken]
        overlap = {j: float(overlaps_bev(box[None], boxes[j : j + 1])) for j in free}
        near = [j for j in free if overlap[j] >= threshold]
        if near:
            best = min(near, key=lambda j: (bool(ignored[j]), -overlap[j], j))
            taken.add((scene, best))
            if ignored[best]:
                continue
            right += 1
        counted += 1
        points.append((right, right / counted))
    return sum(max((p for r, p in points if r >= hit), default=0) for hit in range(1, total + 1)) / total


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_equals_a_naive_implementation(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    predictions, truths = [], []
    for scene in range(5):
        boxes = random_boxes(9, scene, 12)
        noise = torch.randn(9, 7, generator=generator, dtype=torch.float64) * 0.3
        predictions.append((torch.cat([boxes + noise, boxes[:3]]), torch.rand(12, generator=generator)))
        truths.append((boxes, torch.rand(9, generator=generator) < 0.3))
    result = average_precision(predictions, truths, threshold)
    assert result.average_precision == pytest.approx(naive(predictions, truths, threshold), abs=1e-12)
    assert 0.1 < result.average_precision < 0.9 and len(result.scores) < 60
