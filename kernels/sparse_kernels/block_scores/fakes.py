"""What the C++ operators return for tensors without data: shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("sparse_kernels::block_mass_cpu")
def _block_mass(q: Tensor, k: Tensor, lse: Tensor, q_offsets: Tensor, kv_offsets: Tensor, *rest: object) -> Tensor:
    blocks = q_offsets.shape[-1] - 1, kv_offsets.shape[-1] - 1
    return q.new_empty((*q.shape[:2], *blocks), dtype=torch.float32)


@torch.library.register_fake("sparse_kernels::pooled_cpu")
def _pooled(x: Tensor, offsets: Tensor, *rest: object) -> Tensor:
    return x.new_empty((*x.shape[:2], offsets.shape[-1] - 1, x.shape[3]), dtype=torch.float32)
