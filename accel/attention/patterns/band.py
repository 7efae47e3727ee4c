"""Bands around the diagonal."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def band(blocks: int, density: float) -> Bool[Tensor, "n n"]:
    """Return the band of blocks |i - j| <= w nearest to `density`, diagonal included (Sparse-vDiT, section 3)."""
    distance = (torch.arange(blocks)[:, None] - torch.arange(blocks)).abs()
    # Counting beats the formula: with few blocks rounding w would miss the density widely.
    shares = [(distance <= w).double().mean().item() for w in range(blocks)]
    width = min(range(blocks), key=lambda w: abs(shares[w] - density))
    return distance <= width
