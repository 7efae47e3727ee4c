"""The head patterns of Sparse-vDiT (section 3), put together into one plan for a layer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accel.attention.call import Geometry
from accel.attention.orders.grid import native, token_major
from accel.attention.patterns.band import band
from accel.attention.patterns.text import keep_text
from accel.attention.plan import Sparse
from sparse_kernels import BlockMap
from sparse_kernels.block_map import uniform_offsets

MODES = ("full", "skip", "diagonal", "multi-diagonal", "stripe")


def head_mode_plan(
    modes: list[list[str]],
    columns: Int[Tensor, "b h s"],
    geometry: Geometry,
    density: float,
    block: int,
    device: torch.device,
) -> Sparse:
    """Return one plan in which head h of sample b follows modes[b][h]; `columns` ranks its keys for stripes.

    A single list of modes, or a single sample of columns, serves the whole batch.
    """
    offsets = uniform_offsets(geometry.tokens, block)
    blocks = len(offsets) - 1
    identity, transposed = native(geometry), token_major(geometry)
    batch, heads = max(len(modes), len(columns)), len(modes[0])
    names = [modes[min(b, len(modes) - 1)][h] for b in range(batch) for h in range(heads)]
    ranked = columns.cpu().expand(batch, -1, -1).reshape(batch * heads, -1)
    orders = {"multi-diagonal": (transposed, transposed)}
    masks, q_orders, kv_orders = [], [], []
    for name, stripe in zip(names, ranked, strict=True):
        mask = _mode_mask(name, blocks, density)
        # Stripe heads have text among their ranked columns; skipped heads have nothing at all.
        masks.append(mask if name in ("stripe", "skip") else keep_text(mask, geometry, offsets, offsets))
        q_order, kv_order = orders.get(name, (identity, stripe if name == "stripe" else identity))
        q_orders.append(q_order)
        kv_orders.append(kv_order)
    mask, q_order, kv_order = (
        torch.stack(parts).unflatten(0, (batch, heads)).to(device) for parts in (masks, q_orders, kv_orders)
    )
    return Sparse(BlockMap.from_dense(mask, offsets, offsets), q_order, kv_order)


def _mode_mask(mode: str, blocks: int, density: float) -> Bool[Tensor, "n n"]:
    if mode == "full":
        return torch.ones(blocks, blocks, dtype=torch.bool)
    if mode == "skip":
        return torch.zeros(blocks, blocks, dtype=torch.bool)
    if mode == "stripe":
        return (torch.arange(blocks) < max(1, round(density * blocks))).expand(blocks, blocks)
    return band(blocks, density)


def rank_columns(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], scale: float, geometry: Geometry, rows: int = 128
) -> Int[Tensor, "b h s"]:
    """Return the keys of each head by falling softmax mass over evenly spaced query rows, text first."""
    chosen = torch.linspace(0, q.shape[2] - 1, rows, device=q.device).long()
    weights = (q[:, :, chosen].float() @ k.float().transpose(-1, -2) * scale).softmax(-1).sum(2)
    if geometry.text_length:
        start = 0 if geometry.text_position == "first" else geometry.video_tokens
        weights[..., start : start + geometry.text_length] = torch.inf
    return weights.argsort(-1, descending=True)
