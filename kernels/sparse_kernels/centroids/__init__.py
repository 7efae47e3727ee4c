"""What it costs that centroids answer for the tokens of their clusters, and these answers."""

from sparse_kernels.centroids.api import centroid_error, merge_centroids

__all__ = ["centroid_error", "merge_centroids"]
