"""The definition: torch only, any device; a chunk of queries against a whole cloud at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sparse_kernels.points.neighbors import Neighbors, squared_distances

ELEMENTS = 1 << 22  # of the largest buffer


def can_run(points: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


def farthest_point_sampling(
    points: Float32[Tensor, "n d"], offsets: Int64[Tensor, " b1"], starts: Int64[Tensor, " b"], count: int
) -> Int64[Tensor, "b count"]:
    """Return the picks of every cloud; a point that is picked is nearer than any other."""
    picks = offsets.new_full((len(starts), count), -1)
    for cloud, (first, end) in enumerate(pairwise(offsets.tolist())):
        own, pick = points[first:end], starts[cloud]
        nearest = own.new_full((end - first,), torch.inf)
        for sample in range(min(count, end - first)):
            picks[cloud, sample] = first + pick
            nearest = torch.minimum(nearest, squared_distances(own, own[pick]))
            nearest[pick] = -1
            pick = nearest.argmax()  # the first of equals
    return picks


def k_nearest_neighbors(
    points: Float32[Tensor, "n d"],
    offsets: Int64[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int64[Tensor, " b1"],
    k: int,
) -> Neighbors:
    """Return the nearest points of every query."""

    def nearest(distances: Float32[Tensor, "m n"]) -> Int64[Tensor, "m found"]:
        return distances.argsort(dim=1, stable=True)[:, :k]

    return _search(points, offsets, queries, query_offsets, k, nearest)


def ball_query(
    points: Float32[Tensor, "n d"],
    offsets: Int64[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int64[Tensor, " b1"],
    squared_radius: float,
    k: int,
) -> Neighbors:
    """Return the first points in the ball around every query."""

    def first(distances: Float32[Tensor, "m n"]) -> Int64[Tensor, "m found"]:
        outside = distances >= squared_radius
        order = outside.byte().argsort(dim=1, stable=True)[:, :k]
        return order.masked_fill(outside.gather(1, order), -1)

    return _search(points, offsets, queries, query_offsets, k, first)


def _search(
    points: Tensor,
    offsets: Tensor,
    queries: Tensor,
    query_offsets: Tensor,
    k: int,
    chosen: Callable[[Tensor], Tensor],
) -> Neighbors:
    """Return what `chosen` takes of the distances between queries and the points of their cloud, -1 for nothing."""
    index = offsets.new_full((len(queries), k), -1)
    distance = queries.new_full((len(queries), k), torch.inf)
    clouds = zip(pairwise(offsets.tolist()), pairwise(query_offsets.tolist()), strict=True)
    for (first, end), (begin, behind) in clouds:
        step = max(1, ELEMENTS // max(1, end - first))
        for start in range(begin, behind if end > first else begin, step):
            rows = slice(start, min(start + step, behind))
            distances = squared_distances(queries[rows, None], points[None, first:end])
            found = chosen(distances)
            width = found.shape[1]
            index[rows, :width] = torch.where(found >= 0, found + first, -1)
            near = distances.gather(1, found.clamp(min=0))
            distance[rows, :width] = near.masked_fill(found < 0, torch.inf)
    return Neighbors(index, distance)
