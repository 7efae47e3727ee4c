"""What the C++ operator returns for tensors without data: shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("sparse_kernels::kmeans_cpu")
def _kmeans(x: Tensor, centroids: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    labels, sizes = x.new_empty(x.shape[:3], dtype=torch.int32), x.new_empty(centroids.shape[:3], dtype=torch.int32)
    offsets = x.new_empty((*sizes.shape[:2], sizes.shape[2] + 1), dtype=torch.int32)
    return labels, torch.empty_like(centroids), sizes, torch.empty_like(labels, dtype=torch.int64), offsets
