"""Rotated boxes: rows of x, y, z of the centre, length, width, height (metres), heading (radians, from +x to +y)."""

from pointcloud.boxes.detections import Detections
from pointcloud.boxes.geometry import corners, corners_bev, points_in_boxes
from pointcloud.boxes.overlaps import overlaps_3d, overlaps_bev
from pointcloud.boxes.precision import PrecisionRecall, average_precision
from pointcloud.boxes.suppression import nms

__all__ = [
    "Detections",
    "PrecisionRecall",
    "average_precision",
    "corners",
    "corners_bev",
    "nms",
    "overlaps_3d",
    "overlaps_bev",
    "points_in_boxes",
]
