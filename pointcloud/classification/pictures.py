"""Pictures of a confusion and of clouds coloured by class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from pointcloud.classification.confusion import Confusion
from pointcloud.files import replacing
from pointcloud.points import PointCloud

MOST_POINTS = 20_000  # of a cloud are drawn
VIEWS = ((20, -60), (20, 30), (88, -90))  # elevation and azimuth in degrees


def class_colors(number: int) -> Float[Tensor, "number 3"]:
    """Return a colour a class, red, green and blue in [0, 1]; they repeat after twenty."""
    return torch.tensor([colormaps["tab20"](label % 20)[:3] for label in range(number)])


def colored(cloud: PointCloud, labels: Int[Tensor, " points"], classes: int) -> PointCloud:
    """Return the cloud with the attributes `color` and `label`."""
    attributes = {**cloud.attributes, "label": labels, "color": class_colors(classes)[labels]}
    return dataclasses.replace(cloud, attributes=attributes)


def draw_cloud(
    cloud: PointCloud, labels: Int[Tensor, " points"], classes: Sequence[str], title: str, path: Path
) -> None:
    """Write a PNG of a cloud from three sides, points by class, with the classes that occur."""
    step = -(-len(cloud) // MOST_POINTS)
    xyz, shown = cloud.xyz[::step].numpy(), labels[::step]
    colors = class_colors(len(classes))
    figure = Figure(figsize=(12, 4.6), dpi=100)
    for place, (elevation, azimuth) in enumerate(VIEWS):
        axes = figure.add_subplot(1, 3, place + 1, projection="3d")
        axes.scatter(*xyz.T, s=3, c=colors[shown].numpy(), linewidths=0)
        axes.view_init(elevation, azimuth)
        axes.set_box_aspect(np.maximum(np.ptp(xyz, axis=0), 1e-3 * max(np.ptp(xyz), 1e-9)))
        axes.set_axis_off()
    for label in shown.unique().tolist():
        figure.axes[0].scatter([], [], s=30, color=tuple(colors[label].tolist()), label=classes[label])
    figure.legend(loc="lower center", ncols=6, frameon=False, fontsize=9)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def draw_confusion(confusion: Confusion, path: Path) -> None:
    """Write a PNG of the shares of every true class, rows, that were taken for each class, columns."""
    shares = (confusion.counts / confusion.counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = 2.5 + 0.45 * len(confusion.classes)
    figure = Figure(figsize=(side + 1, side), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="taken for", ylabel="is")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(confusion.classes))
    axes.set_xticks(places, confusion.classes, rotation=60, ha="right")
    axes.set_yticks(places, confusion.classes)
    for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
        style = {"color": "white" if shares[row, column] > 0.5 else "black", "fontsize": 7}
        axes.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", **style)
    axes.set_title(f"accuracy {confusion.accuracy:.3f}, mean overlap {confusion.mean_overlap:.3f}")
    with replacing(path) as temporary:
        figure.savefig(temporary)
