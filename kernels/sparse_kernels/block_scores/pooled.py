"""Block means."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._checks import DTYPES, check_order, check_rows, check_types, has_tangent, shared_offsets
from sparse_kernels._tensors import contiguous, rows


def pooled(
    x: Float[Tensor, "b h s d"], offsets: Int[Tensor, "*#bh n1"], order: Int[Tensor, "#b #h s"] | None = None
) -> Float32[Tensor, "b h n d"]:
    """Return the mean of each block's rows in float32, zeros for an empty block.

    `offsets` are (n+1,) when all heads share them, else (b|1 h|1 n+1); they count positions after `order`.
    ValueError on shapes or types that do not fit.
    """
    check_rows(x=x)
    check_types((*DTYPES, torch.float64), x=x)
    offsets = shared_offsets("offsets", offsets, x, x.shape[2])
    check_order("order", order, x, x.shape[2])
    kernels = x.dtype in DTYPES and not x.requires_grad and not has_tangent(x)  # which have no derivatives
    if kernels and _extension.reason_against(x=x) is None:
        return torch.ops.sparse_kernels.pooled_cpu(rows(x), offsets.contiguous(), contiguous(order), "")
    if kernels and x.is_cuda and offsets.shape[-1] > 1:
        from sparse_kernels.block_scores import triton_pooled  # here, since importing Triton takes its time

        if triton_pooled.can_run(x):
            return triton_pooled.pooled_triton(x, offsets, order)
    if order is not None:
        x = x.gather(2, order[..., None].expand_as(x))
    offsets = offsets.expand(*x.shape[:2], -1).contiguous()
    sums = torch.segment_reduce(x.float().contiguous(), "sum", offsets=offsets, axis=2, initial=0, unsafe=True)
    return sums / offsets.diff().clamp(min=1)[..., None]
