"""The definition of block-sparse attention: torch only, differentiable, any device; one matrix product a block row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._checks import check_permutes, check_rises
from sparse_kernels._tensors import of_head
from sparse_kernels.block_map import BlockMap


def can_run(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> str | None:
    """Return None: the reference runs everything."""
    return None


def check_map(
    q: Tensor, k: Tensor, block_map: BlockMap, q_order: Tensor | None = None, kv_order: Tensor | None = None
) -> None:
    """Refuse what the C++ kernel refuses where it reads the map and the orders; this reads from the device."""
    check_rises("q_offsets", block_map.q_offsets, q.shape[2])
    check_rises("kv_offsets", block_map.kv_offsets, k.shape[2])
    for name, order in (("q_order", q_order), ("kv_order", kv_order)):
        if order is not None:
            check_permutes(name, order)
    counts, room, blocks = block_map.counts, block_map.indices.shape[-1], block_map.kv_offsets.shape[-1] - 1
    wrong = (counts < 0) | (counts > room)
    if wrong.any():
        raise ValueError(f"counts must lie between 0 and indices.shape[-1] = {room}, got {int(counts[wrong][0])}")
    listed = torch.arange(room, device=counts.device) < counts[..., None]
    if (listed & ((block_map.indices < 0) | (block_map.indices >= blocks))).any():
        raise ValueError(f"indices must name key blocks 0 to {blocks - 1}, got others")
    if (block_map.to_dense().sum(-1) != counts).any():
        raise ValueError("indices must name a key block once for each query block, got one twice")


def weigh(scores: Float[Tensor, "s t"], lse: Float[Tensor, " s"]) -> Float[Tensor, "s t"]:
    """Return the softmax weights."""
    return (scores - lse[:, None]).exp()


def forward(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap,
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
    weigh: Callable[[Tensor, Tensor], Tensor] = weigh,
) -> tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:
    """Return the output and the natural-log LSE, both in the callers' row order; `weigh` makes scores weights."""
    batch, heads = q.shape[:2]
    check_map(q, k, block_map, q_order, kv_order)
    mask = block_map.to_dense()
    outs, lses = [], []
    for b in range(batch):
        for h in range(heads):
            kv_head = h * k.shape[1] // heads
            rows, columns = of_head(q_order, b, h), of_head(kv_order, b, h)
            head_q, head_k, head_v = q[b, h], k[b, kv_head], v[b, kv_head]
            out, lse = _attend_head(
                head_q if rows is None else head_q[rows],
                head_k if columns is None else head_k[columns],
                head_v if columns is None else head_v[columns],
                of_head(mask, b, h),
                of_head(block_map.q_offsets, b, h),
                of_head(block_map.kv_offsets, b, h),
                scale,
                weigh,
            )
            if rows is not None:
                inverse = torch.argsort(rows)
                out, lse = out[inverse], lse[inverse]
            outs.append(out)
            lses.append(lse)
    shape = (batch, heads, q.shape[2])
    return torch.stack(outs).view(*shape, -1).to(q.dtype), torch.stack(lses).view(shape)


def _attend_head(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, q_offsets: Tensor, kv_offsets: Tensor, scale: float,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q_ends, kv_ends = q_offsets.tolist(), kv_offsets.tolist()
    outs, lses = [], []
    for i in range(len(q_ends) - 1):
        rows = q[q_ends[i] : q_ends[i + 1]].float()
        blocks = mask[i].nonzero().flatten().tolist()
        keys = [slice(kv_ends[j], kv_ends[j + 1]) for j in blocks]
        if not any(part.stop > part.start for part in keys):
            outs.append(rows * 0)
            lses.append(torch.full((len(rows),), -torch.inf, device=q.device))
            continue
        scores = rows @ torch.cat([k[part] for part in keys]).float().T * scale
        lse = scores.logsumexp(-1)
        outs.append(weigh(scores, lse) @ torch.cat([v[part] for part in keys]).float())
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)
