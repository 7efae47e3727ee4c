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
    modes: list[str], columns: Int[Tensor, "h s"], geometry: Geometry, density: float, block: int, device: torch.device
) -> Sparse:
    """Return one plan in which head h follows modes[h]; `columns` ranks each head's keys for the stripe mode."""
    offsets = uniform_offsets(geometry.tokens, block)
    blocks = len(offsets) - 1
    identity, transposed = native(geometry), token_major(geometry)
    masks, q_orders, kv_orders = [], [], []
    for head, mode in enumerate(modes):
        masks.append(_mode_mask(mode, blocks, density))
        q_orders.append(transposed if mode == "multi-diagonal" else identity)
        kv_orders.append({"multi-diagonal": transposed, "stripe": columns[head].cpu()}.get(mode, identity))
    mask = torch.stack(masks)[None]
    stripes = torch.tensor([mode == "stripe" for mode in modes])
    kept = keep_text(mask, geometry, offsets, offsets)
    skipped = torch.tensor([mode == "skip" for mode in modes])
    # Stripe heads have text among their ranked columns; skipped heads have nothing at all.
    mask = torch.where((stripes | skipped)[:, None, None], mask, kept)
    block_map = BlockMap.from_dense(mask.to(device), offsets, offsets)
    q_order = torch.stack(q_orders)[None].to(device)
    return Sparse(block_map, q_order, torch.stack(kv_orders)[None].to(device))


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
) -> Int[Tensor, "h s"]:
    """Return the keys of each head by falling softmax mass over evenly spaced query rows, text first."""
    chosen = torch.linspace(0, q.shape[2] - 1, rows, device=q.device).long()
    weights = (q[:, :, chosen].float() @ k.float().transpose(-1, -2) * scale).softmax(-1).sum((0, 2))
    if geometry.text_length:
        start = 0 if geometry.text_position == "first" else geometry.video_tokens
        weights[:, start : start + geometry.text_length] = torch.inf
    return weights.argsort(-1, descending=True)
