"""Ray-cast driving scenes with labelled points and boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointcloud.points import PointCloud
from pointcloud.scenes.layout import random_layout
from pointcloud.scenes.lidar import Lidar, scan
from pointcloud.scenes.objects import join

FEWEST_POINTS = 5  # in a box that is to be found


@dataclass(frozen=True)
class Scene:
    """A scan and what is in it; the origin is the ground below the sensor.

    The cloud has `intensity` in [0, 1], `label` (index of the class) and `instance` (row of `boxes`), both -1 on the
    background.
    """

    cloud: PointCloud
    boxes: Float[Tensor, "boxes 7"]
    classes: Int[Tensor, " boxes"]
    points_per_box: Int[Tensor, " boxes"]

    @property
    def visible(self) -> Bool[Tensor, " boxes"]:
        """Which boxes hold enough points to be found; evaluation ignores the others."""
        return self.points_per_box >= FEWEST_POINTS


def make_scene(seed: int, lidar: Lidar | None = None) -> Scene:
    """Return the scene of a seed: the same for the same seed and LiDAR, whatever was made before."""
    generator = np.random.default_rng(seed)
    ground, things = random_layout(generator)
    mesh, thing_of = join([*(thing.mesh for thing in things), ground.mesh()])
    returns = scan(mesh, lidar or Lidar(), generator)
    hit = thing_of[returns.triangle]  # the ground comes after all things
    reflectance = np.where(
        hit < len(things), mesh.reflectance[returns.triangle], ground.reflectance(returns.xyz[:, :2])
    )
    speckle = generator.normal(1, 0.1, len(hit))
    intensity = np.clip(reflectance * np.sqrt(returns.cosine) * speckle, 0, 1)
    labelled = [thing for thing in things if thing.label >= 0]
    instance = np.where(hit < len(labelled), hit, -1)
    classes = np.array([thing.label for thing in labelled], np.int64)
    attributes = {
        "intensity": torch.from_numpy(intensity.astype(np.float32)),
        "label": torch.from_numpy(np.append(classes, -1)[instance]),
        "instance": torch.from_numpy(instance),
    }
    boxes = np.array([thing.box for thing in labelled], np.float32).reshape(-1, 7)
    counts = np.bincount(instance[instance >= 0], minlength=len(boxes))
    cloud = PointCloud(torch.from_numpy(returns.xyz.astype(np.float32)), attributes)
    return Scene(cloud, *(torch.from_numpy(part) for part in (boxes, classes, counts)))
