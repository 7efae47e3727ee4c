"""PyTorch's FlexAttention as a backend: blocks of one size; for comparison and for devices without a kernel of ours."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._checks import has_tangent
from sparse_kernels._precision import without_autocast
from sparse_kernels.block_map import BlockMap, uniform_size
from sparse_kernels.block_sparse_attention.reference import check_map


def can_run(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> str | None:
    """Return why FlexAttention cannot run the call, or None."""
    if has_tangent(q, k, v):
        return "FlexAttention has no forward-mode derivative; use backend='reference'"
    for name, offsets in (("query", block_map.q_offsets), ("key", block_map.kv_offsets)):
        size = uniform_size(offsets)
        if size is None:
            return f"the {name} blocks differ in size"
        if size % 16:
            return f"the {name} blocks have {size} tokens, FlexAttention needs multiples of 16"
    return None


@without_autocast
def forward(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap,
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
) -> tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:
    """Return the output and the natural-log LSE; orders cost a copy here."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    check_map(q, k, block_map, q_order, kv_order)
    group = q.shape[1] // k.shape[1]
    if kv_order is not None:
        k, v = (x.repeat_interleave(group, 1) if kv_order.shape[1] > 1 else x for x in (k, v))
        k, v = (_gather(x, kv_order) for x in (k, v))
    # Compiled for the CPU, FlexAttention gives no LSE (torch 2.13): there it runs eagerly, right but slow.
    attend = torch.compile(flex_attention, dynamic=False) if q.is_cuda else flex_attention
    out, aux = attend(
        q if q_order is None else _gather(q, q_order),
        k,
        v,
        block_mask=block_map.to_flex(),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    assert aux.lse is not None
    lse = aux.lse.float()
    counts = torch.repeat_interleave(
        block_map.counts, block_map.q_offsets[0, 0].diff().long(), dim=-1, output_size=q.shape[2]
    )
    out, lse = out * (counts > 0)[..., None], torch.where(counts > 0, lse, -torch.inf)
    if q_order is not None:
        inverse = torch.argsort(q_order, -1)
        out, lse = _gather(out, inverse), lse.gather(2, inverse.expand(lse.shape))
    return out, lse


def _gather(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(2, order[..., None].expand(*x.shape[:3], x.shape[3]))
