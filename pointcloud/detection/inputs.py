"""Points of files as a detector was trained on them: intensity in [0, 1], the ground below the sensor at z = 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointcloud.boxes import Detections
from pointcloud.files import check_layout
from pointcloud.points import PointCloud
from pointcloud.voxels import VoxelGrid

# Of constants the one that costs dsvt-tiny least: average precision 0.91, 0.84 and 0.77 in place of 0.92, 0.92 and 0.86
# for vehicles, pedestrians and cyclists on 24 scenes. So clouds without intensity are looked at, and not refused.
USUAL_INTENSITY = 0.15
FULL_INTENSITIES = (1, 255, 1023, 4095, 65535)  # of floats and of 8, 10, 12 and 16 bits
LEAST_INSIDE = 0.5  # share of the points
FARTHEST_GROUND = 0.75  # metres; at one metre the average precision of dsvt-tiny falls by a tenth


@dataclass(frozen=True)
class Inputs:
    """How the points of files are to be understood; ValueError on numbers that none can have, and unknown layouts.

    `intensity` goes to all points of a cloud that has none; None takes `USUAL_INTENSITY` and says so. What a file calls
    `full_intensity` becomes 1; None finds it among `FULL_INTENSITIES`, and says so unless it is 1. `ground` is the
    height of the ground below the sensor, in metres: 0 in training, -1.73 in KITTI. `layout` is that of `.bin` files,
    as `read_points` takes it.
    """

    intensity: float | None = None
    full_intensity: float | None = None
    ground: float = 0.0
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.intensity is not None and not 0 <= self.intensity <= 1:
            raise ValueError(f"intensity must be in [0, 1], got {self.intensity}")
        if self.full_intensity is not None and not 0 < self.full_intensity < math.inf:
            raise ValueError(f"full_intensity must be above 0, got {self.full_intensity}; give a finite number as 255")
        if not math.isfinite(self.ground):
            raise ValueError(f"ground must be a height in metres, got {self.ground}; give a finite number as -1.73")
        check_layout(self.layout)

    def guess(self, cloud: PointCloud, attributes: Sequence[str]) -> int | None:
        """Return what a cloud for a detector that takes `attributes` seems to call full intensity.

        None where nothing is to be guessed.
        """
        if self.full_intensity is not None or "intensity" not in attributes or "intensity" not in cloud.attributes:
            return None
        return full_intensity(cloud.attributes["intensity"].float())

    def prepare(self, cloud: PointCloud, attributes: Sequence[str]) -> tuple[PointCloud, dict[str, str]]:
        """Return the cloud for a detector that takes `attributes`, and by kind what was guessed or looks wrong."""
        known, notes = dict(cloud.attributes), {}
        if "intensity" in attributes and "intensity" not in known:
            constant = USUAL_INTENSITY if self.intensity is None else self.intensity
            known["intensity"] = torch.full((len(cloud),), constant)
            if self.intensity is None:
                notes["intensity"] = f"it has no intensity: {constant} is taken for all points; --intensity sets it"
        elif "intensity" in attributes:
            full = self.full_intensity or self.guess(cloud, attributes) or 1
            known["intensity"] = known["intensity"].float() / full
            if self.full_intensity is None and full != 1:
                notes["full intensity"] = f"its intensities go up to {full}: divided by it; --full-intensity sets it"
        xyz = cloud.xyz - cloud.xyz.new_tensor([0, 0, self.ground])
        height = ground_height(xyz)
        if height is not None and abs(height) > FARTHEST_GROUND:
            there = f"{height + self.ground:.1f}"
            notes["ground"] = (
                f"its ground seems to lie at z = {there}, --ground is {self.ground:g}: try --ground {there}"
            )
        return replace(cloud, xyz=xyz, attributes=known), notes

    def restore(self, found: Detections) -> Detections:
        """Return what was found in a prepared cloud where it is in the file's own."""
        lift = found.boxes.new_tensor([0, 0, self.ground, 0, 0, 0, 0])
        return replace(found, boxes=found.boxes + lift)


def outside_note(xyz: Float[Tensor, "points 3"], grid: VoxelGrid) -> dict[str, str]:
    """Return a note where a detector sees less than half of the points."""
    inside = ((xyz >= xyz.new_tensor(grid.lower)) & (xyz < xyz.new_tensor(grid.upper))).all(1).float().mean().item()
    if inside >= LEAST_INSIDE:
        return {}
    reach = ", ".join(f"{axis} {a:g} to {b:g}" for axis, a, b in zip("xyz", grid.lower, grid.upper, strict=True))
    return {
        "range": f"{inside:.1%} of its points lie where the detector looks ({reach} m around the sensor): the origin "
        "must be where the sensor stood, and larger scenes be cut into pieces"
    }


def full_intensity(values: Float[Tensor, " points"]) -> int:
    """Return the least of `FULL_INTENSITIES` that holds all but a hundredth of the values."""
    most = float(np.quantile(values.numpy(), 0.99))
    return next((full for full in FULL_INTENSITIES if most <= full), FULL_INTENSITIES[-1])


def ground_height(xyz: Float[Tensor, "points 3"]) -> float | None:
    """Return about which z the ground has within 20 m of the sensor, None with fewer than 100 points there."""
    near = xyz[xyz[:, :2].norm(dim=1) < 20, 2]
    return float(np.quantile(near.numpy(), 0.25)) if len(near) >= 100 else None
