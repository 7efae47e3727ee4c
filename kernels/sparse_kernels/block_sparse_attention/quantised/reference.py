"""The definition of quantised attention: the operands after rounding, through the plain reference."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention import reference
from sparse_kernels.block_sparse_attention.quantised.rounding import (
    key_mean,
    mean_logits,
    round_blocks,
    round_channels,
    round_weights,
)


def can_run(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, precision: str) -> str | None:
    """Return None: the reference runs everything."""
    return None


def forward(
    q: Float[Tensor, "b h sq d"], k: Float[Tensor, "b hkv skv d"], v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap, q_order: Int[Tensor, "#b #h sq"] | None, kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float, precision: str,
) -> tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:  # fmt: skip
    """Return the output and the natural-log LSE, both in the callers' row order."""
    reference.check_map(q, k, block_map, q_order, kv_order)
    heads = q.shape[1]
    mean = key_mean(k) if precision == "int8" else None
    rounded_q = _restored(q, block_map.q_offsets, q_order, heads, precision, None)
    rounded_k = _restored(k, block_map.kv_offsets, kv_order, heads, precision, mean)
    if precision == "fp8":
        values, scales = round_channels(v)
        v = values.float() * scales[:, :, None]
    v = v.float().repeat_interleave(rounded_k.shape[1] // v.shape[1], 1)
    arguments = (rounded_q, rounded_k, v, block_map, q_order, kv_order, scale)
    out, lse = reference.forward(*arguments, weigh=_weigh_in_fp8 if precision == "fp8" else reference.weigh)
    return out.to(q.dtype), lse if mean is None else lse + mean_logits(q, mean, scale)


def _restored(
    x: Tensor, offsets: Tensor, order: Tensor | None, heads: int, precision: str, mean: Tensor | None
) -> Float[Tensor, "b h s d"]:
    rounded = round_blocks(x, offsets, order, heads, precision, mean)
    rows = rounded.values.float() * rounded.scales[..., None]
    if order is None:
        return rows
    return torch.empty_like(rows).scatter_(2, order[..., None].expand(rows.shape), rows)


def _weigh_in_fp8(scores: Float[Tensor, "s t"], lse: Float[Tensor, " s"]) -> Float[Tensor, "s t"]:
    peak = scores.amax(-1)
    return round_weights((scores - peak[:, None]).exp()) * (peak - lse).exp()[:, None]
