"""What it costs that centroids answer for the tokens of their clusters, and these answers."""

from sparse_kernels.centroids.api import centroid_log_error, merge_centroids

__all__ = ["centroid_log_error", "merge_centroids"]
