"""Ray-cast driving scenes (extra `points`: Open3D casts the rays)."""

from pointcloud.scenes.dataset import DrivingScenes
from pointcloud.scenes.layout import CLASSES
from pointcloud.scenes.lidar import Lidar
from pointcloud.scenes.scene import Scene, make_scene

__all__ = ["CLASSES", "DrivingScenes", "Lidar", "Scene", "make_scene"]
