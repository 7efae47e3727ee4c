"""Pictures: boxes appear where they are, in the colour of their class, and point clouds are coloured by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointcloud.boxes import Detections, corners, points_in_boxes
from pointcloud.detection.pictures import COLORS, PANEL, colored, draw, from_above, from_behind, window_of
from pointcloud.points import PointCloud

CLASSES = ("vehicle", "pedestrian", "cyclist")
BOXES = torch.tensor([[10.0, 5.0, 0.8, 4.5, 2.0, 1.6, 0.6], [-8.0, -6.0, 0.9, 0.8, 0.8, 1.8, 0.0]])


def scene(points: int = 4000) -> PointCloud:
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(points, 3, generator=generator) * torch.tensor([60.0, 60.0, 2.0]) - torch.tensor([30.0, 30.0, 0.2])
    return PointCloud(xyz, {"intensity": torch.rand(points, generator=generator)})


def found(count: int = 2) -> Detections:
    return Detections(BOXES[:count], torch.tensor([0.9, 0.5])[:count], torch.tensor([0, 2])[:count])


def picture(cloud: PointCloud, detections: Detections, path: Path) -> np.ndarray:
    draw(cloud, detections, path, CLASSES)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_both_views_show_each_box_where_it_is_in_its_colour(tmp_path: Path) -> None:
    cloud, detections = scene(), found()
    shown = picture(cloud, detections, tmp_path / "a.png")
    assert shown.shape == (PANEL, 2 * PANEL, 3)
    window = window_of(cloud.xyz, detections.boxes)
    for left, view in ((0, from_above), (PANEL, from_behind)):
        for box, label in zip(corners(detections.boxes).numpy(), detections.labels.tolist(), strict=True):
            # Halfway along each lower edge, in pixels.
            middles = view((box[:4] + box[[1, 2, 3, 0]]) / 2, window)
            columns = (left + (middles[:, 0] + 1) * PANEL / 2).round().astype(int)
            rows = ((1 - middles[:, 1]) * PANEL / 2).round().astype(int)
            for row, column in zip(rows, columns, strict=True):
                near = shown[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)
                assert np.abs(near - 255 * np.array(COLORS[label])).max(1).min() < 60


def test_without_detections_only_points_are_shown(tmp_path: Path) -> None:
    cloud = scene()
    shown = picture(cloud, found(0), tmp_path / "a.png")
    corner = shown[-1, -1]
    for panel in (shown[:, :PANEL], shown[:, PANEL:]):
        assert (np.abs(panel - corner).sum(2) > 60).sum() > 4000  # each point is four pixels, less what is hidden


def test_nearer_points_hide_those_behind_them(tmp_path: Path) -> None:
    column = torch.zeros(200, 3)
    column[:, 2] = torch.linspace(0, 5, 200)
    shown = picture(PointCloud(column.flip(0)), found(0), tmp_path / "a.png")
    same = picture(PointCloud(column), found(0), tmp_path / "b.png")
    assert np.array_equal(shown, same)
    red, green, blue = shown[PANEL // 2, PANEL // 2]
    assert red > 200 and green > 200 and blue < 100  # the highest point is yellow


def test_the_camera_behind_sees_left_on_the_left_and_up_above() -> None:
    window = window_of(torch.tensor([[-20.0, -20.0, 0.0], [20.0, 20.0, 0.0]]), BOXES[:0])
    center, left, high, far = from_behind(np.array([[0.0, 0, 0], [0, 5, 0], [0, 0, 5], [15, 0, 0]]), window)
    assert np.allclose(center[:2], 0) and left[0] < 0 and high[1] > 0 and far[1] > 0 and far[2] > center[2]
    assert np.isnan(from_behind(np.array([[-500.0, 0, 0]]), window)).all()


def test_points_take_the_colour_of_the_best_box_that_holds_them() -> None:
    cloud = scene(40_000)
    over = Detections(BOXES[[0, 0, 1]], torch.tensor([0.9, 0.5, 0.7]), torch.tensor([0, 1, 2]))
    result = colored(cloud, over)
    color, inside = result.attributes["color"], points_in_boxes(cloud.xyz, BOXES)
    assert inside.any(0).all() and set(result.attributes) == {"intensity", "color"}
    assert torch.equal(color[inside[:, 0]], torch.tensor(COLORS[0]).expand(int(inside[:, 0].sum()), 3))
    assert torch.equal(color[inside[:, 1]], torch.tensor(COLORS[2]).expand(int(inside[:, 1].sum()), 3))
    grey = color[~inside.any(1)]
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert grey.min() >= 0 and grey.max() <= 1
    height = cloud.xyz[~inside.any(1), 2]
    assert grey[height.argmax(), 0] == pytest.approx(0.75) and grey[height.argmin(), 0] == pytest.approx(0.25)
    assert "color" not in cloud.attributes
