"""Clouds sampled from meshes: ten shapes to classify, and composed objects with parts to segment (extra `points`)."""

from pointcloud.shapes.dataset import ShapeClouds
from pointcloud.shapes.objects import CATEGORIES, PARTS
from pointcloud.shapes.primitives import SHAPES
from pointcloud.shapes.sample import Sample, make_segments, make_shape

__all__ = ["CATEGORIES", "PARTS", "SHAPES", "Sample", "ShapeClouds", "make_segments", "make_shape"]
