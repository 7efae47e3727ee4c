"""The definition of block-sparse attention: torch only, differentiable, any device; one matrix product a block row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._checks import check_permutes, check_rises
from sparse_kernels._precision import without_autocast
from sparse_kernels._tensors import of_head
from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention.summaries import Summaries, heard_weights


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
    """Return the softmax weights, not by way of the LSE, whose rounding would be an error of a whole row."""
    return scores.softmax(-1)


@without_autocast
def forward(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap,
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
    weigh: Callable[[Tensor, Tensor], Tensor] = weigh,
    summaries: Summaries | None = None,
    lse_of_visited: bool = False,
) -> tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:
    """Return the output and the natural-log LSE, both in the callers' row order; `weigh` makes scores weights."""
    batch, heads = q.shape[:2]
    check_map(q, k, block_map, q_order, kv_order)
    mask = block_map.to_dense()
    means = None if summaries is None else summaries.of_heads()
    if means is not None:
        means = (*means[:2], heard_weights(block_map, means[2]))
    outs, lses = [], []
    for b in range(batch):
        for h in range(heads):
            kv_head = h * k.shape[1] // heads
            rows, columns = of_head(q_order, b, h), of_head(kv_order, b, h)
            head_q, head_k, head_v = q[b, h], k[b, kv_head], v[b, kv_head]
            blocks = _Blocks(
                head_k if columns is None else head_k[columns],
                head_v if columns is None else head_v[columns],
                of_head(mask, b, h),
                of_head(block_map.kv_offsets, b, h).tolist(),
                None if means is None else [of_head(x, b, h) for x in means],
            )
            head_q = head_q if rows is None else head_q[rows]
            offsets = of_head(block_map.q_offsets, b, h)
            out, lse = _attend_head(head_q, offsets, blocks, scale, weigh, lse_of_visited)
            if rows is not None:
                inverse = torch.argsort(rows)
                out, lse = out[inverse], lse[inverse]
            outs.append(out)
            lses.append(lse)
    shape = (batch, heads, q.shape[2])
    return torch.stack(outs).view(*shape, -1).to(q.dtype), torch.stack(lses).view(shape)


@dataclass(frozen=True)
class _Blocks:
    """The key blocks of one head in their order, and their summaries: keys, values, what each query block hears."""

    k: Tensor
    v: Tensor
    mask: Tensor
    ends: list[int]
    summaries: list[Tensor] | None

    def answer(self, i: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return keys, values and weights that query block i attends to, and how many of them are keys it visits."""
        parts = [slice(self.ends[j], self.ends[j + 1]) for j in self.mask[i].nonzero().flatten().tolist()]
        k, v = (torch.cat([x[:0], *(x[part] for part in parts)]).float() for x in (self.k, self.v))
        weights, visited = k.new_zeros(len(k)), len(k)
        if self.summaries is not None:
            heard = self.summaries[2][i] > -torch.inf
            more = (self.summaries[0][heard], self.summaries[1][heard], self.summaries[2][i][heard])
            k, v, weights = (torch.cat(pair) for pair in zip((k, v, weights), more, strict=True))
        return k, v, weights, visited


def _attend_head(
    q: Tensor, q_offsets: Tensor, blocks: _Blocks, scale: float, weigh: Callable[[Tensor, Tensor], Tensor],
    lse_of_visited: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q_ends = q_offsets.tolist()
    outs, lses = [], []
    for i in range(len(q_ends) - 1):
        rows = q[q_ends[i] : q_ends[i + 1]].float()
        k, v, weights, visited = blocks.answer(i)
        if len(k) == 0:
            # Not a product, which would be NaN for a query that is not finite; zeros alone would have no gradient.
            outs.append(rows.masked_fill(rows.new_ones((), dtype=torch.bool), 0))
            lses.append(rows.new_full((len(rows),), -torch.inf))
            continue
        scores = rows @ k.T * scale + weights
        lse = scores.logsumexp(-1)
        outs.append(weigh(scores, lse) @ v)
        lses.append(scores[:, :visited].logsumexp(-1) if lse_of_visited else lse)
    return torch.cat(outs), torch.cat(lses)
