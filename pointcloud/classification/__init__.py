"""Shapes of clouds and parts of points, for any network: model, training, evaluation, files and pictures."""

from pointcloud.classification.config import SEGMENTS_TINY, SHAPES_TINY, ModelConfig
from pointcloud.classification.confusion import Confusion
from pointcloud.classification.model import CloudModel

__all__ = ["SEGMENTS_TINY", "SHAPES_TINY", "CloudModel", "Confusion", "ModelConfig"]
