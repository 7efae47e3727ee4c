"""Searches in clouds of points, packed one behind the other: rows `offsets[i]` to `offsets[i + 1]` are cloud i."""

from sparse_kernels.points.api import ball_query, farthest_point_sampling, k_nearest_neighbors
from sparse_kernels.points.gathering import group, three_nearest_interpolation
from sparse_kernels.points.neighbors import Neighbors

__all__ = [
    "Neighbors",
    "ball_query",
    "farthest_point_sampling",
    "group",
    "k_nearest_neighbors",
    "three_nearest_interpolation",
]
