"""The C++ kernels: a tree of boxes around 32 points each, on AVX-512, AVX2 or SSE, chosen at run time.

A box that is too far away to matter is left out, by a distance in the same arithmetic. Boxes follow the points, so that
clouds in few dense clusters cost no more than even ones; the cells of a grid would fill up.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels.points.neighbors import Neighbors


def can_run(points: Tensor) -> str | None:
    """Return why the C++ kernels cannot run the call, or None; builds them at the first call."""
    return _extension.reason_against(points=points)


def farthest_point_sampling(
    points: Float32[Tensor, "n d"],
    offsets: Int64[Tensor, " b1"],
    starts: Int64[Tensor, " b"],
    count: int,
    instructions: str = "",
) -> Int64[Tensor, "b count"]:
    """Return the picks of every cloud, a cloud a thread; `instructions` forces an instruction set, for tests."""
    operator = torch.ops.sparse_kernels.farthest_point_sampling_cpu
    return operator(points.contiguous(), offsets, starts, count, instructions)


def k_nearest_neighbors(
    points: Float32[Tensor, "n d"],
    offsets: Int64[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int64[Tensor, " b1"],
    k: int,
    instructions: str = "",
) -> Neighbors:
    """Return the nearest points of every query; `instructions` forces an instruction set, for tests."""
    operator = torch.ops.sparse_kernels.k_nearest_neighbors_cpu
    return Neighbors(*operator(points.contiguous(), offsets, queries.contiguous(), query_offsets, k, instructions))


def ball_query(
    points: Float32[Tensor, "n d"],
    offsets: Int64[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int64[Tensor, " b1"],
    squared_radius: float,
    k: int,
    instructions: str = "",
) -> Neighbors:
    """Return the first points in the ball around every query; `instructions` forces an instruction set, for tests."""
    operator = torch.ops.sparse_kernels.ball_query_cpu
    clouds = (points.contiguous(), offsets, queries.contiguous(), query_offsets)
    return Neighbors(*operator(*clouds, squared_radius, k, instructions))
