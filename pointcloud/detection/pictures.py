"""Pictures of detections: one PNG with two views, and point clouds coloured by the box that holds each point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pointcloud.boxes import Detections, corners, points_in_boxes
from pointcloud.points import PointCloud

PANEL = 800  # pixels a side
BACKGROUND = (18, 20, 26)
COLORS = (
    (1.0, 0.50, 0.15),
    (1.0, 0.35, 0.80),
    (0.30, 0.85, 1.0),
    (0.95, 0.95, 0.30),
    (0.60, 0.95, 0.40),
    (0.75, 0.60, 1.0),
)
# Pairs of the corners that `corners` returns: around below, around above, upright.
EDGES = [edge for i in range(4) for edge in ((i, (i + 1) % 4), (i + 4, (i + 1) % 4 + 4), (i, i + 4))]


@dataclasses.dataclass(frozen=True)
class Window:
    """The square of the ground that a picture shows: its centre, half its side, the height of the ground; metres."""

    x: float
    y: float
    half: float
    ground: float


def draw(cloud: PointCloud, detections: Detections, path: Path, classes: Sequence[str]) -> None:
    """Write a PNG: from above (x upwards) and from behind, points by height, boxes by class with heading and score."""
    xyz = cloud.xyz.numpy()
    window = window_of(cloud.xyz, detections.boxes)
    colors = colormaps["viridis"](0.25 + 0.75 * _heights(cloud.xyz), bytes=True)[:, :3]
    figure = Figure(figsize=(2 * PANEL / 100, PANEL / 100), dpi=100)
    for left, view in ((0, from_above), (0.5, from_behind)):
        axes = figure.add_axes((left, 0, 0.5, 1))
        axes.imshow(_painted(view(xyz, window), colors), extent=(-1, 1, -1, 1), interpolation="nearest")
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        axes.axis("off")
        if view is from_above:
            _draw_rings(axes, window)
        _draw_boxes(axes, detections, lambda points, view=view: view(points, window))
    _draw_legend(figure.axes[0], detections, classes)
    FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 1})  # the usual 6 takes several times longer


def colored(cloud: PointCloud, detections: Detections) -> PointCloud:
    """Return the cloud with an attribute `color`: grey by height, in boxes the class colour (of the best score)."""
    color = torch.from_numpy(0.25 + 0.5 * _heights(cloud.xyz)).float()[:, None].repeat(1, 3)
    for index in detections.scores.argsort().tolist():
        inside = points_in_boxes(cloud.xyz, detections.boxes[index : index + 1])[:, 0]
        color[inside] = torch.tensor(COLORS[int(detections.labels[index]) % len(COLORS)])
    return dataclasses.replace(cloud, attributes={**cloud.attributes, "color": color})


def window_of(xyz: Float[Tensor, "points 3"], boxes: Float[Tensor, "boxes 7"]) -> Window:
    """Return the window that holds all boxes and nearly all points; at least 10 m wide."""
    low, high = np.percentile(xyz.numpy(), (1, 99), axis=0)
    ends = np.concatenate([np.stack([low, high]), corners(boxes).reshape(-1, 3).numpy()])[:, :2]
    (x, y), half = (ends.max(0) + ends.min(0)) / 2, float(np.ptp(ends, axis=0).max()) / 2
    return Window(float(x), float(y), max(5.0, 1.05 * half), float(low[2]))


def from_above(xyz: Float[np.ndarray, "n 3"], window: Window) -> Float[np.ndarray, "n 3"]:
    """Return where points lie in a picture from -1 to 1 (right, up), and how deep: x points up, y to the left."""
    right, up = (window.y - xyz[:, 1]) / window.half, (xyz[:, 0] - window.x) / window.half
    return np.stack([right, up, -xyz[:, 2]], 1)


def from_behind(xyz: Float[np.ndarray, "n 3"], window: Window) -> Float[np.ndarray, "n 3"]:
    """Return the same for a pinhole camera behind and above the window, that looks at its centre; NaN behind it."""
    back, above, zoom = 1.3, 0.8, 1.5  # distances from the centre in half sides, and focal length in half pictures
    distance = np.hypot(back, above)
    forward = np.array([back, 0, -above]) / distance
    upward = np.array([above, 0, back]) / distance
    from_center = (xyz - [window.x, window.y, window.ground]) / window.half
    depth = from_center @ forward + distance
    depth = np.where(depth > 0.01, depth, np.nan)
    return np.stack([-zoom * from_center[:, 1] / depth, zoom * (from_center @ upward) / depth, depth], 1)


def _heights(xyz: Float[Tensor, "points 3"]) -> Float[np.ndarray, " points"]:
    """Return heights from 0 to 1; the ends are percentiles, since a few points lie far off."""
    z = xyz[:, 2].numpy()
    low, high = np.percentile(z, (2, 98))
    return np.clip((z - low) / max(high - low, 1e-3), 0, 1)


def _painted(seen: Float[np.ndarray, "n 3"], colors: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "side side 3"]:
    """Return a picture of points as squares of two pixels, from the deepest to the nearest."""
    image = np.full((PANEL, PANEL, 3), BACKGROUND, np.uint8)
    shown = (np.abs(seen[:, :2]) < 1).all(1)
    seen, colors = seen[shown], colors[shown]
    order = np.argsort(-seen[:, 2], kind="stable")
    places = np.stack([1 - seen[order, 1], 1 + seen[order, 0]], 1) * (PANEL / 2)  # row, column
    places = places.astype(int)[:, None] + [(0, 0), (0, 1), (1, 0), (1, 1)]
    places = places.clip(max=PANEL - 1).reshape(-1, 2)
    image[places[:, 0], places[:, 1]] = colors[order].repeat(4, 0)  # of equal places the last, nearest one stays
    return image


def _draw_rings(axes: Axes, window: Window) -> None:
    """Draw circles around the sensor with their radii in metres."""
    x, y, _ = from_above(np.zeros((1, 3)), window)[0]
    farthest = np.hypot(abs(window.x) + window.half, abs(window.y) + window.half)
    for radius in MaxNLocator(6).tick_values(0, farthest)[1:]:
        axes.add_patch(Circle((x, y), radius / window.half, fill=False, color="white", alpha=0.2, linewidth=0.7))
        axes.text(x, y + radius / window.half, f"{radius:g} m", color="white", alpha=0.6, fontsize=8, clip_on=True)


def _draw_boxes(axes: Axes, detections: Detections, view: Callable[[np.ndarray], np.ndarray]) -> None:
    solid = corners(detections.boxes).numpy()
    if not len(solid):
        return
    bottom, front = solid[:, :4].mean(1), solid[:, [0, 3]].mean(1)
    ticks = np.stack([bottom, front + 0.3 * (front - bottom)], 1)
    lines = np.concatenate([solid[:, EDGES], ticks[:, None]], 1)  # boxes, lines, ends, xyz
    seen = view(lines.reshape(-1, 3)).reshape(lines.shape)
    order = np.argsort(-view(solid.mean(1))[:, 2])
    colors = [COLORS[label % len(COLORS)] for label in detections.labels[order].tolist()]
    flat = seen[order, ..., :2]
    line_colors = [color for color in colors for _ in range(flat.shape[1])]
    axes.add_collection(LineCollection(list(flat.reshape(-1, 2, 2)), colors=line_colors, linewidths=1.3))
    for (start, end), color, score in zip(flat[:, -1], colors, detections.scores[order].tolist(), strict=True):
        ahead = 9 * (end - start) / max(np.hypot(*(end - start)), 1e-6)  # printer's points
        style = {"color": color, "fontsize": 7, "ha": "center", "va": "center"}
        axes.annotate(f"{score:.2f}", end, tuple(ahead), textcoords="offset points", **style)


def _draw_legend(axes: Axes, detections: Detections, classes: Sequence[str]) -> None:
    for label, name in enumerate(classes):
        text = f"{name}  {int((detections.labels == label).sum())}"
        axes.text(-0.97, 0.94 - 0.05 * label, text, color=COLORS[label % len(COLORS)], fontsize=11)
