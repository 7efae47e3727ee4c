"""Block means."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels.block_scores.checks import DTYPES, check_order, shared_offsets


def pooled(
    x: Float[Tensor, "b h s d"], offsets: Int[Tensor, "b1 h1 n1"], order: Int[Tensor, "b1 h1 s"] | None = None
) -> Float32[Tensor, "b h n d"]:
    """Return the mean of each block's rows in float32, zeros for an empty block.

    `offsets` are (n+1,) when all heads share them, else (b|1 h|1 n+1); they count positions after `order`.
    ValueError on shapes or types that do not fit.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor (b h s d), got {x.dtype} {tuple(x.shape)}")
    offsets = shared_offsets("offsets", offsets, x)
    check_order("order", order, x)
    if x.device.type == "cpu" and x.dtype in DTYPES and not x.requires_grad and _extension.load() is None:
        order = None if order is None else order.contiguous()
        x = x if x.stride(-1) == 1 else x.contiguous()
        return torch.ops.sparse_kernels.pooled_cpu(x, offsets.contiguous(), order, "")
    if order is not None:
        x = x.gather(2, order[..., None].expand_as(x))
    offsets = offsets.expand(*x.shape[:2], -1).contiguous()
    sums = torch.segment_reduce(x.float().contiguous(), "sum", offsets=offsets, axis=2, initial=0, unsafe=True)
    return sums / offsets.diff().clamp(min=1)[..., None]
