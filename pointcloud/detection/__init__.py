"""Objects in point clouds, for any backbone: head, targets, losses, decoding, training, evaluation and pictures."""

from pointcloud.detection.canvas import to_bev
from pointcloud.detection.detector import Detector
from pointcloud.detection.detector_config import DetectorConfig
from pointcloud.detection.head import CenterHead, HeadConfig

__all__ = ["CenterHead", "Detector", "DetectorConfig", "HeadConfig", "to_bev"]
