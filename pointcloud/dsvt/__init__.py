"""DSVT, the dynamic sparse voxel transformer (CVPR 2023, arXiv 2301.06051), without repeated keys."""

from pointcloud.dsvt.backbone import DSVT
from pointcloud.dsvt.config import NUSCENES_PILLAR, TINY, WAYMO_PILLAR, WAYMO_VOXEL, DSVTConfig, StageConfig
from pointcloud.dsvt.export import export_blocks
from pointcloud.dsvt.features import DynamicVFE

__all__ = [
    "DSVT",
    "NUSCENES_PILLAR",
    "TINY",
    "WAYMO_PILLAR",
    "WAYMO_VOXEL",
    "DSVTConfig",
    "DynamicVFE",
    "StageConfig",
    "export_blocks",
]
