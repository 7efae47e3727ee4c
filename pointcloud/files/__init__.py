"""Point clouds in files of every usual kind."""

from pointcloud.files.binary import read_labels
from pointcloud.files.read import SUFFIXES, read_points
from pointcloud.files.replacing import replacing
from pointcloud.files.write import write_points

__all__ = ["SUFFIXES", "read_labels", "read_points", "replacing", "write_points"]
