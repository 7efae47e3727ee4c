"""What networks take from neighbours: groups around centres, and features between points. Torch alone, any device.

A gather reads each row once and does nothing else, so that kernels of ours would save little; gradients are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from sparse_kernels._checks import check_devices, check_types, described
from sparse_kernels.points.api import k_nearest_neighbors
from sparse_kernels.points.clouds import can_be_read
from sparse_kernels.points.neighbors import squared_distances

CLOSEST = 1e-8  # added to squared distances, as PointNet++ does, so that no weight is infinite
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def group(
    points: Float[Tensor, "n d"],
    centers: Float[Tensor, "m d"],
    index: Int64[Tensor, "m k"],
    features: Float[Tensor, "n c"] | None = None,
) -> Float[Tensor, "m k channels"]:
    """Return neighbours by their place relative to the centre, then their features, d or d + c channels.

    Where `index` is -1 all is 0, as for a neighbour at the centre: Neighbors.counts tells them apart. Gradients go to
    points, centres and features. ValueError on shapes, types or rows that do not fit.
    """
    check_types(TYPES, points=points, centers=centers, **({} if features is None else {"features": features}))
    if points.ndim != 2 or centers.ndim != 2 or points.shape[1] != centers.shape[1]:
        raise ValueError(f"points and centers must share their axes, got {described(points)} and {described(centers)}")
    check_devices(points=points, centers=centers)
    whole = _check_index(index, len(centers), points)
    grouped = _take(points, index) - centers[:, None]
    if features is not None:
        if features.ndim != 2 or len(features) != len(points):
            raise ValueError(f"features must be ({len(points)}, channels), a row a point, got {described(features)}")
        check_devices(points=points, features=features)
        grouped = torch.cat([grouped, _take(features, index)], 2)
    return grouped if whole else grouped.masked_fill(index[..., None] < 0, 0)


def three_nearest_interpolation(
    features: Float[Tensor, "n c"],
    points: Float[Tensor, "n d"],
    offsets: Int[Tensor, " b1"],
    queries: Float[Tensor, "m d"],
    query_offsets: Int[Tensor, " b1"],
    *,
    backend: str | None = None,
) -> Float[Tensor, "m c"]:
    """Return features at the queries, the mean of the three nearest points' weighted by inverse squared distance.

    This is PointNet++, section 3.4 (arXiv 1706.02413). A cloud of one or two points gives those. Gradients go to
    features, points and queries, through the weights; neighbours are looked for in float32. ValueError as in
    `k_nearest_neighbors`, and on queries in a cloud without points (on the CPU; CUDA gives zeros).
    """
    check_types(TYPES, features=features)
    check_types(TYPES[:2], points=points, queries=queries)
    if features.ndim != 2 or len(features) != len(points):
        raise ValueError(f"features must be ({len(points)}, channels), a row a point, got {described(features)}")
    check_devices(points=points, features=features)
    searched = points.detach().float(), offsets, queries.detach().float(), query_offsets
    index, _ = k_nearest_neighbors(*searched, 3, backend=backend)
    if can_be_read(points) and (index[:, 0] < 0).any():
        query = int((index[:, 0] < 0).nonzero()[0, 0])
        raise ValueError(f"query {query} lies in a cloud without points: leave it out, or give that cloud a point")
    distances = squared_distances(_take(points, index), queries[:, None])
    weights = (1 / (distances + CLOSEST)).masked_fill(index < 0, 0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    # Another cloud's row stands where there is no neighbour, and zero times infinity would not be zero.
    near = _take(features, index).to(weights.dtype).masked_fill(index[..., None] < 0, 0)
    return (near * weights[..., None]).sum(1).to(features.dtype)


def _take(x: Float[Tensor, "n c"], index: Int64[Tensor, "m k"]) -> Float[Tensor, "m k c"]:
    """Return rows by index, any row for -1, zeros where there are none at all."""
    if len(x) == 0:
        return x.new_zeros(*index.shape, x.shape[1])
    return x.index_select(0, index.clamp(min=0).flatten()).view(*index.shape, x.shape[1])


def _check_index(index: Any, rows: int, points: Tensor) -> bool:
    """Return whether every neighbour is known to be there."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 2 or len(index) != rows:
        raise ValueError(f"index must be int64 of shape ({rows}, neighbours), a row a center, got {described(index)}")
    check_devices(points=points, index=index)
    if not can_be_read(points) or not index.numel():
        return False
    least, most = (int(row) for row in index.aminmax())
    if least < -1 or most >= len(points):
        raise ValueError(f"index must name rows 0 to {len(points) - 1}, or -1 for none; it has {least} to {most}")
    return least >= 0
