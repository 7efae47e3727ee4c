"""Packed clouds and brute force that the tests of points share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("even", "clusters", "ties", "one place", "tiny numbers", "huge numbers")


@dataclass(frozen=True)
class Clouds:
    """Points and queries of several clouds, some of them empty."""

    points: Tensor
    offsets: Tensor
    queries: Tensor
    query_offsets: Tensor


def packed(sizes: Tensor) -> Tensor:
    """Return the offsets of clouds of these sizes."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def draw(seed: int, largest: int = 400) -> Clouds:
    """Return clouds of sizes 0 to `largest` in 2 to 4 dimensions, of every kind in turn."""
    generator = torch.Generator().manual_seed(seed)
    kind, axes = KINDS[seed % len(KINDS)], 2 + seed // len(KINDS) % 3
    clouds = int(torch.randint(1, 6, (1,), generator=generator))
    limit = (2, 33, largest)[int(torch.randint(3, (1,), generator=generator))]
    sizes = torch.randint(0, limit + 1, (clouds,), generator=generator)
    offsets, query_offsets = packed(sizes), packed(torch.randint(0, 30, (clouds,), generator=generator))
    points, queries = (torch.randn(int(ends[-1]), axes, generator=generator) for ends in (offsets, query_offsets))
    if kind == "clusters":
        points = points * 1e-3 + torch.randint(0, 3, (len(points), 1), generator=generator) * 50
    elif kind == "ties":
        points, queries = (2 * points).round(), (2 * queries).round()
    elif kind == "one place":
        points = torch.ones_like(points)
    elif kind == "tiny numbers":  # whose squares have lost bits
        points, queries = points * 1e-21, queries * 1e-21
    elif kind == "huge numbers":  # whose squares may be infinite
        points, queries = points * 1e19, queries * 1e19
    return Clouds(points, offsets, queries, query_offsets)


def radius_of(clouds: Clouds) -> float:
    """Return a radius in which some points lie."""
    largest = clouds.points.abs().amax().item() if len(clouds.points) else 0.0
    return 0.3 * largest or 1.0
