"""Windows around each token's own place, in every frame."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from accel.attention.call import Geometry
from accel.attention.masks.kept import keep_rest
from accel.attention.orders.grid import token_major
from accel.attention.plan import Sparse
from sparse_kernels import BlockMap
from sparse_kernels.block_map import uniform_offsets


def multi_diagonal_plan(
    geometry: Geometry, window: float, density: float | None, block: int, device: torch.device
) -> Sparse:
    """Return the plan in which a token sees int(window * frame_tokens) // 2 places to both sides, in every frame.

    All that is no video is on. Tokens stand in token-major order, where the many diagonals are one band: its blocks
    hold little else (in frame-major order they would hold several times the window). Given a `density`, the window is
    the one whose blocks come nearest to it. Source: Re-ttention (arXiv 2505.22918).
    """
    offsets = uniform_offsets(geometry.tokens, block, device)
    gaps = block_gaps(geometry, offsets)
    half: Tensor | int = int(window * geometry.frame_tokens) // 2
    if density is not None:
        half = _nearest_half(gaps, geometry.frame_tokens, offsets.diff().long(), density)
    order = token_major(geometry).to(device)[None, None]
    return Sparse(BlockMap.from_dense((gaps <= half)[None, None], offsets, offsets, block), order, order)


def block_gaps(geometry: Geometry, offsets: Int[Tensor, " n1"]) -> Int[Tensor, "n n"]:
    """Return how far apart, within a frame, the nearest tokens of two token-major blocks lie; 0 if any is no video."""
    # Every place between a block's first and last one has a token in it, so two ends say all.
    ends = (torch.stack([offsets[:-1], offsets[1:] - 1]) - geometry.video.start).clamp(0, geometry.video_tokens - 1)
    first, last = ends // geometry.frames
    gaps = torch.maximum(first - last[:, None], first[:, None] - last).clamp(min=0)
    rest: Bool[Tensor, "n n"] = keep_rest(torch.zeros_like(gaps, dtype=torch.bool), geometry, offsets, offsets)
    return gaps.masked_fill(rest, 0)


def _nearest_half(gaps: Int[Tensor, "n n"], places: int, sizes: Int64[Tensor, " n"], density: float) -> Int[Tensor, ""]:
    """Return the half window whose share of query-key pairs is nearest to `density`, the smaller of two."""
    # Whole numbers: on CUDA running sums of others do not repeat their bits.
    pairs = torch.zeros(places, dtype=torch.int64, device=gaps.device)
    pairs.index_add_(0, gaps.flatten(), torch.outer(sizes, sizes).flatten())
    return (pairs.cumsum(0).double() / sizes.sum() ** 2 - density).abs().argmin()
