"""Inputs and the brute-force oracle that the kernel tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_kernels import BlockMap


@dataclass(frozen=True)
class Case:
    """One attention problem."""

    q: Tensor
    k: Tensor
    v: Tensor
    block_map: BlockMap
    q_order: Tensor | None
    kv_order: Tensor | None


def random_offsets(length: int, blocks: int, generator: torch.Generator) -> Tensor:
    """Return boundaries of unequal blocks, some of them empty."""
    inner = torch.randint(0, length + 1, (blocks - 1,), generator=generator).sort().values
    return torch.cat([torch.tensor([0]), inner, torch.tensor([length])]).to(torch.int32)


def make_case(
    seed: int,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    q_length: int = 131,
    kv_length: int = 150,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    orders: bool = True,
) -> Case:
    """Return a case with variable blocks per head, empty rows, grouped queries and (if asked) orders."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, q_length, head_dim, generator=generator).to(dtype)
    k, v = (torch.randn(batch, kv_heads, kv_length, head_dim, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(batch, heads, 4, 6, generator=generator) < 0.5
    mask[0, 0, 1] = False

    def per_head(length: int, blocks: int) -> Tensor:
        return torch.stack([random_offsets(length, blocks, generator) for _ in range(heads)])[None]

    def order(length: int) -> Tensor:
        rows = [torch.randperm(length, generator=generator) for _ in range(batch * heads)]
        return torch.stack(rows).view(batch, heads, length)

    block_map = BlockMap.from_dense(mask, per_head(q_length, 4), per_head(kv_length, 6))
    return Case(q, k, v, block_map, order(q_length) if orders else None, order(kv_length) if orders else None)


def brute_force(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return output and LSE by a softmax over the full score matrix, computed in `dtype`."""
    batch, heads, q_length, head_dim = case.q.shape
    group = heads // case.k.shape[1]
    q, k, v = (
        case.q.to(dtype),
        case.k.to(dtype).repeat_interleave(group, 1),
        case.v.to(dtype).repeat_interleave(group, 1),
    )
    mask = case.block_map.to_mask().expand(batch, heads, -1, -1)
    for order, axis in ((case.q_order, 2), (case.kv_order, 3)):
        if order is not None:  # the mask counts positions: bring it to the callers' rows
            inverse = order.expand(batch, heads, -1).argsort(-1)
            mask = mask.gather(axis, (inverse[..., None] if axis == 2 else inverse[..., None, :]).expand(mask.shape))
    scores = (q @ k.transpose(-1, -2) * head_dim**-0.5).masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().nan_to_num(0)
    return weights @ v, lse
