"""Rotated boxes against polygon clipping in plain Python, a grid of points, and a greedy loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointcloud.boxes import corners, corners_bev, nms, overlaps_3d, overlaps_bev, points_in_boxes

Point = tuple[float, float]


def random_boxes(count: int, seed: int, spread: float = 6.0) -> Tensor:
    """Return boxes of which many touch, share edges or have headings of whole right angles."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    boxes[:, :2] = (boxes[:, :2] - 0.5) * spread
    boxes[:, 3:6] = 0.3 + 4 * boxes[:, 3:6]
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 20
    boxes[::3, :6] = (2 * boxes[::3, :6]).round() / 2 + 0.5  # sizes and places on a lattice
    boxes[::3, 6] = (boxes[::3, 6]).round() * math.pi / 2
    return boxes


def outline(box: Tensor) -> list[Point]:
    x, y, _, length, width, _, heading = box.tolist()
    cosine, sine = math.cos(heading), math.sin(heading)
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    halves = ((i * length / 2, j * width / 2) for i, j in signs)
    return [(x + cosine * u - sine * v, y + sine * u + cosine * v) for u, v in halves]


def area(polygon: list[Point]) -> float:
    ends = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return sum(a[0] * b[1] - a[1] * b[0] for a, b in ends) / 2


def clip(polygon: list[Point], start: Point, end: Point) -> list[Point]:
    """Return what lies to the left of a line."""
    kept: list[Point] = []
    sides = [(end[0] - start[0]) * (y - start[1]) - (end[1] - start[1]) * (x - start[0]) for x, y in polygon]
    for i, (point, side) in enumerate(zip(polygon, sides, strict=True)):
        if side >= 0:
            kept.append(point)
        other, next_side = polygon[(i + 1) % len(polygon)], sides[(i + 1) % len(polygon)]
        if side * next_side < 0:
            t = side / (side - next_side)
            kept.append((point[0] + t * (other[0] - point[0]), point[1] + t * (other[1] - point[1])))
    return kept


def clipped_overlap(a: Tensor, b: Tensor, volume: bool) -> float:
    shared, frame = outline(a), outline(b)
    for start, end in zip(frame, frame[1:] + frame[:1], strict=True):
        shared = clip(shared, start, end)
    inside, size_a, size_b = area(shared), area(outline(a)), area(frame)
    if volume:
        (low_a, high_a), (low_b, high_b) = ((float(x[2] - x[5] / 2), float(x[2] + x[5] / 2)) for x in (a, b))
        inside *= max(0.0, min(high_a, high_b) - max(low_a, low_b))
        size_a, size_b = size_a * float(a[5]), size_b * float(b[5])
    return inside / (size_a + size_b - inside)


@pytest.mark.parametrize("volume", [False, True])
def test_overlaps_equal_clipped_polygons(volume: bool) -> None:
    a, b = random_boxes(45, 0), random_boxes(40, 1)
    ours = (overlaps_3d if volume else overlaps_bev)(a, b)
    expected = torch.tensor([[clipped_overlap(x, y, volume) for y in b] for x in a], dtype=torch.float64)
    assert (ours - expected).abs().max() < 1e-12
    assert (ours > 0).float().mean() > 0.2 and (ours == 0).any()


def test_overlaps_equal_counted_points() -> None:
    a, b = random_boxes(6, 2, spread=3), random_boxes(5, 3, spread=3)
    axis = torch.arange(-8, 8, 0.02, dtype=torch.float64) + 0.01
    grid = torch.cartesian_prod(axis, axis, torch.zeros(1, dtype=torch.float64))
    a[:, 2], b[:, 2] = 0, 0
    in_a, in_b = points_in_boxes(grid, a).double(), points_in_boxes(grid, b).double()
    shared = in_a.T @ in_b
    counted = shared / (in_a.sum(0)[:, None] + in_b.sum(0) - shared)
    assert (overlaps_bev(a, b) - counted).abs().max() < 0.01


@pytest.mark.parametrize("overlaps", [overlaps_bev, overlaps_3d])
def test_overlap_of_special_pairs(overlaps) -> None:
    box = torch.tensor([[30.1, -7.3, 1.0, 4.0, 2.0, 1.5, 0.7]], dtype=torch.float64)
    others = box.repeat(8, 1)
    others[1, 6] += math.pi  # the same box from behind
    others[2, 3:6] *= 0.5  # contained
    others[3, 0] += 4 * math.cos(0.7)  # touches with its rear
    others[3, 1] += 4 * math.sin(0.7)
    others[4, 3] = 0  # no area
    others[5] = torch.nan
    others[6, 0] += 100
    others[7, 3:5] = others[7, [4, 3]]
    others[7, 6] += math.pi / 2  # the same box, sides exchanged
    result = overlaps(box, others)[0]
    contained = 0.25 if overlaps is overlaps_bev else 0.125
    expected = torch.tensor([1, 1, contained, 0, 0, 0, 0, 1], dtype=torch.float64)
    assert (result - expected).abs().max() < 1e-12 and result.max() <= 1 and result[3] == 0
    assert overlaps(others[4:6], others[4:6]).eq(0).all()
    assert overlaps(box[:0], others).shape == (0, 8) and overlaps(others, box[:0]).shape == (8, 0)


def test_overlaps_do_not_change_when_everything_moves() -> None:
    a, b = random_boxes(30, 4), random_boxes(30, 5)
    expected = overlaps_bev(a, b)
    turn = torch.tensor([[math.cos(1.1), -math.sin(1.1)], [math.sin(1.1), math.cos(1.1)]], dtype=torch.float64)
    moved = [torch.cat([x[:, :2] @ turn.T + 300, x[:, 2:6], x[:, 6:] + 1.1], 1) for x in (a, b)]
    assert (overlaps_bev(*moved) - expected).abs().max() < 1e-11
    assert (overlaps_bev(b, a).T - expected).abs().max() < 1e-12
    assert overlaps_bev(a.float(), b.float()).dtype == torch.float32


def test_corners_run_counter_clockwise_around_their_points() -> None:
    boxes = random_boxes(20, 6)
    flat, solid = corners_bev(boxes), corners(boxes)
    assert torch.allclose(flat, torch.tensor([outline(box) for box in boxes], dtype=torch.float64))
    assert all(area([tuple(point) for point in around]) > 0 for around in flat.tolist())  # pyright: ignore
    assert torch.allclose(solid.mean(1), boxes[:, :3])
    assert torch.equal(solid[:, :4, :2], flat) and torch.equal(solid[:, 4:, :2], flat)
    assert torch.allclose(solid[:, 4:, 2] - solid[:, :4, 2], boxes[:, 5:6].expand(-1, 4))
    inwards = solid + 1e-6 * (boxes[:, None, :3] - solid)
    outwards = solid - 1e-6 * (boxes[:, None, :3] - solid)
    own = torch.eye(20, dtype=torch.bool).repeat_interleave(8, 0)
    assert points_in_boxes(inwards.reshape(-1, 3), boxes)[own].all()
    assert not points_in_boxes(outwards.reshape(-1, 3), boxes)[own].any()


def test_a_face_belongs_to_its_box() -> None:
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 2.0, 0.0]])
    points = torch.tensor([[3.0, 3.0, 4.0], [3.001, 2.0, 3.0], [1.0, 3.001, 3.0], [1.0, 2.0, 1.999]])
    assert points_in_boxes(points, box).flatten().tolist() == [True, False, False, False]


def greedy(boxes: Tensor, scores: list[float], threshold: float, labels: list[int]) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = (j for j in kept if labels[j] == labels[i])
        if all(clipped_overlap(boxes[j], boxes[i], volume=False) <= threshold + 1e-12 for j in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_nms_equals_a_greedy_loop(threshold: float) -> None:
    boxes = random_boxes(60, 7)
    generator = torch.Generator().manual_seed(8)
    scores = torch.randint(10, (60,), generator=generator) / 10  # with ties
    labels = torch.randint(3, (60,), generator=generator)
    for given in (None, labels):
        expected = greedy(boxes, scores.tolist(), threshold, [0] * 60 if given is None else labels.tolist())
        assert nms(boxes, scores, threshold, given).tolist() == expected
    assert len(nms(boxes, scores, 1.0)) == 60
    assert nms(boxes[:0], scores[:0], threshold).shape == (0,)
