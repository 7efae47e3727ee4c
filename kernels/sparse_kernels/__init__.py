"""Kernels of sparse attention; tensors are laid out b h s d (batch, head, token, channel)."""

from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_scores import antidiagonal_scores, block_mass, pooled
from sparse_kernels.block_sparse_attention import Summaries, backend_reasons, block_sparse_attention, outruns_sdpa
from sparse_kernels.centroids import centroid_log_error, merge_centroids
from sparse_kernels.kmeans import Clusters, kmeans
from sparse_kernels.selection import fill_budget, rank_entries

__all__ = [
    "BlockMap",
    "Clusters",
    "Summaries",
    "antidiagonal_scores",
    "backend_reasons",
    "block_mass",
    "block_sparse_attention",
    "centroid_log_error",
    "fill_budget",
    "kmeans",
    "merge_centroids",
    "outruns_sdpa",
    "pooled",
    "rank_entries",
]
