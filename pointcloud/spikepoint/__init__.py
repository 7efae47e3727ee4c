"""SpikePoint (Ren et al., ICLR 2024, arXiv 2310.07189): a spiking network on windows of events, as points (x, y, t)."""

from pointcloud.spikepoint.clouds import sample_cloud
from pointcloud.spikepoint.coding import direct_code, latency_code, rate_code
from pointcloud.spikepoint.config import SpikePointConfig, large, small, tiny
from pointcloud.spikepoint.grouping import Groups, group_clouds
from pointcloud.spikepoint.network import SpikePoint

__all__ = [
    "Groups",
    "SpikePoint",
    "SpikePointConfig",
    "direct_code",
    "group_clouds",
    "large",
    "latency_code",
    "rate_code",
    "sample_cloud",
    "small",
    "tiny",
]
