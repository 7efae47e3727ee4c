"""The head patterns of Sparse-vDiT (section 3), put together into one plan for a layer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accel.attention.call import Geometry
from accel.attention.masks.band import band, stripe
from accel.attention.masks.kept import keep_first_frame, keep_rest, rest_blocks
from accel.attention.orders.grid import native, token_major
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
    first_frame: bool = False,
) -> Sparse:
    """Return one plan in which head h of sample b follows modes[b][h]; `columns` ranks its keys for stripes.

    A single list of modes, or a single sample of columns, serves the whole batch. With `first_frame` every pattern
    keeps all pairs of the first frame and is narrower for it; columns must then be ranked so, too.
    """
    offsets = uniform_offsets(geometry.tokens, block)
    batch, heads = max(len(modes), len(columns)), len(modes[0])
    names = [modes[min(b, len(modes) - 1)][h] for b in range(batch) for h in range(heads)]
    ranked = columns.cpu().expand(batch, -1, -1).reshape(batch * heads, -1)
    drawn = {name: _mode_mask(name, geometry, offsets, density, first_frame) for name in set(names)}
    identity = native(geometry)
    orders = {"multi-diagonal": token_major(geometry, first_frame)}
    q_orders = [orders.get(name, identity) for name in names]
    kv_orders = [
        row if name == "stripe" else orders.get(name, identity) for name, row in zip(names, ranked, strict=True)
    ]
    mask, q_order, kv_order = (
        torch.stack(parts).unflatten(0, (batch, heads)).to(device)
        for parts in ([drawn[name] for name in names], q_orders, kv_orders)
    )
    return Sparse(BlockMap.from_dense(mask, offsets, offsets, block), q_order, kv_order)


def _mode_mask(
    mode: str, geometry: Geometry, offsets: Int[Tensor, " n1"], density: float, first_frame: bool
) -> Bool[Tensor, "n n"]:
    blocks = len(offsets) - 1
    if mode == "full":
        return torch.ones(blocks, blocks, dtype=torch.bool)
    rest = rest_blocks(geometry, offsets)
    kept = rest[:, None].repeat(1, blocks)
    if mode == "skip":
        return kept
    if first_frame:
        kept = keep_first_frame(kept, geometry, offsets, offsets)
    if mode == "stripe":  # whose columns begin with the text
        kept[:, : rest.sum()] = True
        return stripe(blocks, density, kept)
    return band(blocks, density, keep_rest(kept, geometry, offsets, offsets))  # the band is narrower for what is kept


def rank_columns(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    scale: float,
    geometry: Geometry,
    first_frame: bool = False,
    rows: int = 128,
) -> Int[Tensor, "b h s"]:
    """Return each head's keys by falling softmax mass over evenly spaced query rows, text and first frame ahead."""
    chosen = torch.linspace(0, q.shape[2] - 1, rows, device=q.device).long()
    masses = []
    for head in range(q.shape[1]):  # one by one: all keys in float32 are gigabytes where a video is long
        scores = q[:, head, chosen].float() @ k[:, head].float().transpose(-1, -2) * scale
        masses.append(scores.softmax(-1).sum(1))
    weights = torch.stack(masses, 1)
    if first_frame:
        weights[..., geometry.video.start : geometry.video.start + geometry.frame_tokens] += rows
    return weights.masked_fill(geometry.kept(q.device), torch.inf).argsort(-1, descending=True)
