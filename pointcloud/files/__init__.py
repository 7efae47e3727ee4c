"""Point clouds in files of every usual kind."""

from pointcloud.files.binary import check_layout, read_labels
from pointcloud.files.read import SUFFIXES, read_points
from pointcloud.files.replacing import replacing
from pointcloud.files.write import write_points

__all__ = ["SUFFIXES", "check_layout", "read_labels", "read_points", "replacing", "write_points"]
