"""What the C++ operators return for tensors without data: shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("sparse_kernels::block_sparse_attention_cpu")
def _attention(q: Tensor, k: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q)
    if out.stride(-1) != 1:  # where rows of q overlap
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("sparse_kernels::pack_mask_cpu")
def _packed(mask: Tensor, room: int) -> tuple[Tensor, Tensor]:
    return mask.new_empty(mask.shape[:3], dtype=torch.int32), mask.new_empty((*mask.shape[:3], room), dtype=torch.int32)


@torch.library.register_fake("sparse_kernels::permutes_cpu")
def _permutes(order: Tensor) -> Tensor:
    return order.new_empty((), dtype=torch.bool)
