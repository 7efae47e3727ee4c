"""E-3DSNN: spiking sparse convolution for clouds (extra `points`)."""

from pointcloud.e3dsnn.backbone import MeanVFE, SpikingBackbone
from pointcloud.e3dsnn.config import HUGE, LARGE, SEGMENTATION, SMALL, TINY, E3DSNNConfig
from pointcloud.e3dsnn.network import Classifier, Encoder, Segmenter

__all__ = [
    "HUGE",
    "LARGE",
    "SEGMENTATION",
    "SMALL",
    "TINY",
    "Classifier",
    "E3DSNNConfig",
    "Encoder",
    "MeanVFE",
    "Segmenter",
    "SpikingBackbone",
]
