"""Nested patterns: bands around the diagonal, stripes of columns; as wide as a density allows."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def band(blocks: int, density: float, kept: Bool[Tensor, "n n"] | None = None) -> Bool[Tensor, "n n"]:
    """Return the band of blocks |i - j| <= w (Sparse-vDiT, section 3) that has, with the `kept` ones, that density."""
    places = torch.arange(blocks)
    return _widest((places[:, None] - places).abs(), density, kept)


def stripe(blocks: int, density: float, kept: Bool[Tensor, "n n"] | None = None) -> Bool[Tensor, "n n"]:
    """Return the first columns that have, with the `kept` blocks, that density."""
    return _widest(torch.arange(blocks).expand(blocks, blocks), density, kept)


def _widest(distance: Int[Tensor, "n n"], density: float, kept: Bool[Tensor, "n n"] | None) -> Bool[Tensor, "n n"]:
    """Return `kept` and all blocks up to the distance that comes nearest to the density; distance 0 is always in."""
    kept = torch.zeros_like(distance, dtype=torch.bool) if kept is None else kept
    # Counting beats a formula: with few blocks rounding would miss the density widely.
    counts = torch.bincount(distance[~kept], minlength=len(distance)).cumsum(0) + kept.sum()
    width = (counts / distance.numel() - density).abs().argmin()
    return kept | (distance <= width)
