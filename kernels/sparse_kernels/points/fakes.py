"""What the C++ operators return for tensors without data: shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("sparse_kernels::farthest_point_sampling_cpu")
def _picks(points: Tensor, offsets: Tensor, starts: Tensor, count: int, *rest: object) -> Tensor:
    return offsets.new_empty(starts.shape[0], count)


@torch.library.register_fake("sparse_kernels::k_nearest_neighbors_cpu")
def _nearest(
    points: Tensor, offsets: Tensor, queries: Tensor, query_offsets: Tensor, count: int, *rest: object
) -> tuple[Tensor, Tensor]:
    return offsets.new_empty(queries.shape[0], count), queries.new_empty(queries.shape[0], count)


@torch.library.register_fake("sparse_kernels::ball_query_cpu")
def _ball(
    points: Tensor,
    offsets: Tensor,
    queries: Tensor,
    query_offsets: Tensor,
    squared_radius: float,
    count: int,
    *rest: object,
) -> tuple[Tensor, Tensor]:
    return offsets.new_empty(queries.shape[0], count), queries.new_empty(queries.shape[0], count)
