"""Refuse arguments that do not fit, with a sentence that names them."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_q_k(q: Tensor, k: Tensor) -> None:
    """Refuse q and k that cannot be multiplied; q may have a multiple of k's heads."""
    for name, tensor in (("q", q), ("k", k)):
        if tensor.ndim != 4 or 0 in tensor.shape:
            raise ValueError(f"{name} must be (b h s d) and not empty, got {tuple(tensor.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "q and k must agree on batch and head_dim, and q's heads be a multiple of k's, "
            f"got q {tuple(q.shape)} and k {tuple(k.shape)}"
        )
    if q.dtype not in DTYPES or q.dtype != k.dtype:
        raise ValueError(f"q and k must share one of float32, bfloat16, float16, got {q.dtype} and {k.dtype}")
    if q.device != k.device:
        raise ValueError(f"k is on {k.device}, q on {q.device}: move it there")


def shared_offsets(name: str, offsets: Tensor, x: Tensor) -> Int[Tensor, "b1 h1 n1"]:
    """Return offsets as int32 (b|1 h|1 n+1); they must rise from 0 to the rows of `x`, which is not asked on CUDA."""
    offsets = offsets.view(1, 1, -1) if offsets.ndim == 1 else offsets
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.ndim != 3 or offsets.shape[2] < 2:
        raise ValueError(
            f"{name} must be int32 or int64 of shape (n+1,) or (b|1, h|1, n+1), "
            f"got {offsets.dtype} {tuple(offsets.shape)}"
        )
    _check_shared(name, offsets, x)
    if offsets.device.type == "cpu":
        rises = (offsets[..., 0] == 0) & (offsets[..., -1] == x.shape[2]) & (offsets.diff() >= 0).all(-1)
        if not rises.all():
            raise ValueError(f"{name} must rise from 0 to the sequence length {x.shape[2]}")
    return offsets.to(torch.int32)


def check_order(name: str, order: Tensor | None, x: Tensor) -> None:
    """Refuse an order that is not int64 (b|1 h|1 s) with every row of `x` once; the rows are not read on CUDA."""
    if order is None:
        return
    length = x.shape[2]
    if order.dtype != torch.int64 or order.ndim != 3 or order.shape[2] != length:
        raise ValueError(f"{name} must be int64 of shape (b|1, h|1, {length}), got {order.dtype} {tuple(order.shape)}")
    _check_shared(name, order, x)
    if order.device.type == "cpu":
        seen = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order.clamp(0, length - 1), True)
        if not (seen.all() and ((order >= 0) & (order < length)).all()):
            raise ValueError(f"{name} must hold every row 0 to {length - 1} once")


def _check_shared(name: str, field: Tensor, x: Tensor) -> None:
    batch, heads = x.shape[:2]
    if field.shape[0] not in (1, batch) or field.shape[1] not in (1, heads):
        raise ValueError(
            f"{name} must start with (1 or {batch}, 1 or {heads}) for batch and heads, got {tuple(field.shape)}"
        )
    if field.device != x.device:
        raise ValueError(f"{name} is on {field.device}, the tokens on {x.device}: move it there")
