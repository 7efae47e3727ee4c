"""What the C++ operators return for tensors without data: shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_kernels._tensors import rows


@torch.library.register_fake("sparse_kernels::centroid_log_error_cpu")
def _error(
    queries: Tensor, k: Tensor, v: Tensor, order: Tensor, offsets: Tensor, centroids: Tensor, *rest: object
) -> Tensor:
    return queries.new_empty((*queries.shape[:3], centroids.shape[2]))


@torch.library.register_fake("sparse_kernels::merge_centroids_cpu")
def _merged(q: Tensor, out: Tensor, *rest: object) -> Tensor:
    return rows(torch.empty_like(out))


@torch.library.register_fake("sparse_kernels::orders_labels_cpu")
def _orders_labels(labels: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    return order.new_empty((), dtype=torch.bool)
