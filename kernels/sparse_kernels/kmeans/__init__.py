"""Lloyd's k-means for many heads at once."""

from sparse_kernels.kmeans.api import kmeans
from sparse_kernels.kmeans.clusters import Clusters

__all__ = ["Clusters", "kmeans"]
