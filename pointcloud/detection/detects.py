"""What evaluation and detection ask of a network, whatever its backbone."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pointcloud.boxes import Detections
from pointcloud.points import PointCloud


@runtime_checkable
class Detects(Protocol):
    """A module that finds boxes; its configuration names `attributes` of points and `head.classes`."""

    config: Any

    def detect(self, cloud: PointCloud, threshold: float | None = None) -> Detections:
        """Return what is in a cloud, by falling score, none below the threshold (the configuration's by default)."""
        ...
