"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from sparse_kernels._backends import choose
from sparse_kernels._checks import check_devices, described
from sparse_kernels.points.clouds import can_be_read, check_clouds, check_queries
from sparse_kernels.points.neighbors import Neighbors

MOST = 2**24  # picks or neighbours: their number is that of the result's columns, whatever the clouds hold


@torch.no_grad()
def farthest_point_sampling(
    points: Float32[Tensor, "n d"],
    offsets: Int[Tensor, " b1"],
    count: int,
    *,
    starts: Int[Tensor, " b"] | None = None,
    backend: str | None = None,
) -> Int64[Tensor, "b count"]:
    """Return rows of `points`, each time the one farthest from those picked before (Eldar et al., 1997; PointNet++).

    A cloud begins with its first point, or that at its place `starts`, counted from 0 in each cloud. Of equally far
    points the lowest row wins, and none is picked twice; -1 stands where a cloud has no more. All backends pick the
    same. ValueError on what are no packed clouds and when `backend` cannot run the call.
    """
    offsets = check_clouds("points", points, offsets)
    _check_count("count", count)
    starts = _starts(starts, points, offsets)
    module = choose("points", "farthest point sampling runs", backend, points)
    return module.farthest_point_sampling(points, offsets, starts, count)


@torch.no_grad()
def k_nearest_neighbors(
    points: Float32[Tensor, "n d"],
    offsets: Int[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int[Tensor, " b1"],
    k: int,
    *,
    backend: str | None = None,
) -> Neighbors:
    """Return the k points nearest to each query in its own cloud, the nearest first, of equally near the lower row.

    A query that is a point finds itself. Where a cloud has fewer than k points, rows are filled with -1 and infinity.
    All backends find the same, bit for bit. ValueError on what are no packed clouds and when `backend` cannot run the
    call.
    """
    offsets = check_clouds("points", points, offsets)
    query_offsets = check_queries(points, offsets, queries, query_offsets)
    _check_count("k", k)
    module = choose("points", "the search for neighbours runs", backend, points)
    return module.k_nearest_neighbors(points, offsets, queries, query_offsets, k)


@torch.no_grad()
def ball_query(
    points: Float32[Tensor, "n d"],
    offsets: Int[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int[Tensor, " b1"],
    radius: float,
    k: int,
    *,
    backend: str | None = None,
) -> Neighbors:
    """Return the first k points, by row, that are nearer to each query than `radius` (PointNet++, arXiv 1706.02413).

    Unlike there, rows are filled with -1 and infinity, not with the first neighbour. All backends find the same, bit
    for bit. ValueError as in `k_nearest_neighbors`, and on a radius that is not above 0.
    """
    offsets = check_clouds("points", points, offsets)
    query_offsets = check_queries(points, offsets, queries, query_offsets)
    _check_count("k", k)
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be a number above 0, in the points' units, got {radius}")
    squared = torch.tensor(radius, dtype=torch.float32, device="cpu").square().item()  # not the user's default
    module = choose("points", "the search for neighbours runs", backend, points)
    return module.ball_query(points, offsets, queries, query_offsets, squared, k)


def _check_count(name: str, count: int) -> None:
    if not 1 <= count <= MOST:
        raise ValueError(f"{name} must be from 1 to {MOST}, got {count}")


def _starts(starts: Any, points: Tensor, offsets: Tensor) -> Int64[Tensor, " b"]:
    """Return the places at which clouds begin, checked against their sizes on the CPU."""
    if starts is None:
        return offsets.new_zeros(len(offsets) - 1)
    fits = isinstance(starts, Tensor) and starts.dtype in (torch.int32, torch.int64)
    if not fits or starts.shape != (len(offsets) - 1,):
        raise ValueError(f"starts must be int32 or int64, one place for each cloud, got {described(starts)}")
    check_devices(points=points, starts=starts)
    starts = starts.long().contiguous()
    sizes = offsets.diff()
    wrong = (starts < 0) | (starts >= sizes.clamp(min=1))
    if can_be_read(points) and wrong.any():
        cloud = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"starts must be places in their clouds, from 0 on; that of cloud {cloud} with {int(sizes[cloud])} points "
            f"is {int(starts[cloud])}"
        )
    return starts
