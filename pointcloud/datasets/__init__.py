"""Public data sets in their own folders, and the published recipes of E-3DSNN to train on them."""

from pointcloud.datasets.batches import VoxelBatch, augment, collate, one_point_a_cell, viewed
from pointcloud.datasets.kitti import KITTI, KITTIObjects, read_calibration, read_objects
from pointcloud.datasets.labelled import LabelledCloud
from pointcloud.datasets.modelnet import MODELNET40, ModelNet40
from pointcloud.datasets.recipes import (
    KITTI_RECIPE,
    MODELNET40_RECIPE,
    SEMANTIC_KITTI_RECIPE,
    CloudRecipe,
    DetectionRecipe,
    Optimisation,
)
from pointcloud.datasets.semantic_kitti import SEMANTIC_KITTI, SemanticKITTI, from_raw, to_raw

__all__ = [
    "KITTI",
    "KITTI_RECIPE",
    "MODELNET40",
    "MODELNET40_RECIPE",
    "SEMANTIC_KITTI",
    "SEMANTIC_KITTI_RECIPE",
    "CloudRecipe",
    "DetectionRecipe",
    "KITTIObjects",
    "LabelledCloud",
    "ModelNet40",
    "Optimisation",
    "SemanticKITTI",
    "VoxelBatch",
    "augment",
    "collate",
    "from_raw",
    "one_point_a_cell",
    "read_calibration",
    "read_objects",
    "to_raw",
    "viewed",
]
