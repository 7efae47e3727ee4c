"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from sparse_kernels._backends import choose_backend
from sparse_kernels.block_scores.checks import check_order, check_q_k, shared_offsets


@torch.no_grad()
def block_mass(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    lse: Float[Tensor, "b h sq"],
    q_offsets: Int[Tensor, "b1 h1 nq1"],
    kv_offsets: Int[Tensor, "b1 h1 nk1"],
    *,
    q_order: Int[Tensor, "b1 h1 sq"] | None = None,
    kv_order: Int[Tensor, "b1 h1 skv"] | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Float32[Tensor, "b h nq nk"]:
    """Return the softmax mass of each block: exp(q k scale - lse), summed over its rows and keys (AdaSpa, section 3.2).

    With the true natural-log LSE every row of q adds up to one, with one cached from an earlier step nearly so; an
    LSE of +inf leaves a row out. Offsets are (n+1,) when all heads share them, else (b|1 h|1 n+1), and count
    positions after the orders, as in block_sparse_attention; `lse` is in q's own row order. `scale` defaults to
    d**-0.5. ValueError on shapes, types, offsets or orders that do not fit, and when `backend` cannot run the call.
    """
    check_q_k(q, k)
    if lse.shape != q.shape[:3] or not lse.is_floating_point() or lse.device != q.device:
        raise ValueError(
            f"lse must be a floating-point tensor of shape {tuple(q.shape[:3])} on {q.device}, "
            f"got {lse.dtype} {tuple(lse.shape)} on {lse.device}"
        )
    q_offsets, kv_offsets = shared_offsets("q_offsets", q_offsets, q), _key_offsets(kv_offsets, q, k)
    check_order("q_order", q_order, q)
    check_order("kv_order", kv_order, _as_keys(q, k))
    module = choose_backend("sparse_kernels.block_scores", "block scores run", backend, q, k)
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
    check_q_k(q, k)
    if stride < 1 or block < 1 or block % stride:
        raise ValueError(f"block must be a multiple of stride, both at least 1, got block {block} and stride {stride}")
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"causal needs q and k of one length, got {q.shape[2]} and {k.shape[2]}")
    module = choose_backend("sparse_kernels.block_scores", "block scores run", backend, q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return module.antidiagonal_scores(q, k, block, stride, scale, causal)


def _key_offsets(kv_offsets: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return shared_offsets("kv_offsets", kv_offsets, _as_keys(q, k))


def _as_keys(q: Tensor, k: Tensor) -> Tensor:
    """Return a view of the shape that key offsets and orders refer to: k's rows, but q's heads."""
    return k[:, :1].expand(-1, q.shape[1], -1, -1)
