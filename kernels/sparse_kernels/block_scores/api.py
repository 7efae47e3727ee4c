"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from sparse_kernels._backends import choose
from sparse_kernels._checks import (
    check_devices,
    check_order,
    check_q_k,
    check_rows,
    check_types,
    described,
    shared_offsets,
)

LONGEST_STRIDE = 4096  # published ones are 4 to 64; a sequence is filled up to whole strides


@torch.no_grad()
def block_mass(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    lse: Float[Tensor, "b h sq"],
    q_offsets: Int[Tensor, "*#bh nq1"],
    kv_offsets: Int[Tensor, "*#bh nk1"],
    *,
    q_order: Int[Tensor, "#b #h sq"] | None = None,
    kv_order: Int[Tensor, "#b #h skv"] | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Float32[Tensor, "b h nq nk"]:
    """Return the softmax mass of each block: exp(q k scale - lse), summed over its rows and keys (AdaSpa, section 3.2).

    With the true natural-log LSE every row of q adds up to one, with one cached from an earlier step nearly so; an
    LSE of +inf leaves a row out. Offsets are (n+1,) when all heads share them, else (b|1 h|1 n+1), and count
    positions after the orders, as in block_sparse_attention; `lse` is in q's own row order. `scale` defaults to
    d**-0.5. ValueError on shapes, types, offsets or orders that do not fit, and when `backend` cannot run the call.
    """
    _check(q, k)
    if not isinstance(lse, Tensor) or lse.shape != q.shape[:3] or not lse.is_floating_point():
        raise ValueError(f"lse must be a floating-point tensor of shape {tuple(q.shape[:3])}, got {described(lse)}")
    check_devices(q=q, lse=lse)
    q_offsets = shared_offsets("q_offsets", q_offsets, q, q.shape[2])
    kv_offsets = shared_offsets("kv_offsets", kv_offsets, q, k.shape[2])
    check_order("q_order", q_order, q, q.shape[2])
    check_order("kv_order", kv_order, q, k.shape[2])
    module = choose("block_scores", "block scores run", backend, q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return module.block_mass(q, k, lse.float(), q_offsets, kv_offsets, q_order, kv_order, scale)


@torch.no_grad()
def antidiagonal_scores(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    block: int,
    stride: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    backend: str | None = None,
) -> Float32[Tensor, "b h nq nk"]:
    """Return XAttention's estimate of each block's mass from its antidiagonals (arXiv 2503.16428, section 2.1).

    Every `stride` tokens become one: keys are laid end to end, queries in reverse, so that their product sums one
    antidiagonal of a stride x stride tile. The softmax of these sums, divided by `stride`, over all tiles of a row
    is added up over blocks of `block` tokens: a row of full blocks sums to block / stride. Tiles that hold no token
    (the sequence's padding to whole blocks) get nothing. `scale` defaults to d**-0.5.
    ValueError on shapes or types that do not fit, a block that is no multiple of stride, and when `backend` cannot run.
    """
    _check(q, k)
    if not 1 <= stride <= LONGEST_STRIDE or block < 1 or block % stride:
        raise ValueError(
            f"block must be a multiple of stride, both at least 1 and stride at most {LONGEST_STRIDE}, "
            f"got block {block} and stride {stride}"
        )
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"causal needs q and k of one length, got {q.shape[2]} and {k.shape[2]}")
    # A block that is longer than all tokens holds them all, and needs no more room than they do.
    block = min(block, -(-max(q.shape[2], k.shape[2]) // stride) * stride)
    module = choose("block_scores", "block scores run", backend, q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return module.antidiagonal_scores(q, k, block, stride, scale, causal)


def _check(q: Tensor, k: Tensor) -> None:
    check_rows(q=q, k=k)
    check_types(q=q, k=k)
    check_q_k(q, k)
