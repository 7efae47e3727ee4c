"""Refuse what are no packed clouds, with a sentence that says what was given, what is accepted, what to do."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sparse_kernels._checks import check_devices, check_types, described

AXES = (2, 3, 4)
MOST_POINTS = 2**30


def check_clouds(name: str, points: Any, offsets: Any) -> Int64[Tensor, " b1"]:
    """Return the offsets of packed clouds as int64; on the CPU points are seen to be finite and offsets to rise."""
    check_types((torch.float32,), **{name: points})
    if points.ndim != 2 or points.shape[1] not in AXES or len(points) > MOST_POINTS:
        raise ValueError(
            f"{name} must be (rows, 2 to 4 coordinates) with at most {MOST_POINTS:,} rows, got {described(points)}"
        )
    if not isinstance(offsets, Tensor) or offsets.dtype not in (torch.int32, torch.int64) or offsets.ndim != 1:
        raise ValueError(
            f"the offsets of {name} must be int32 or int64 of shape (clouds + 1,), got {described(offsets)}: "
            "give where each cloud begins, and where the last one ends"
        )
    if len(offsets) < 2:
        raise ValueError(f"the offsets of {name} must name at least one cloud by its begin and end, got {len(offsets)}")
    check_devices(**{name: points, f"the offsets of {name}": offsets})
    offsets = offsets.long().contiguous()
    if can_be_read(points):
        _check_values(name, points, offsets)
    return offsets


def check_queries(points: Tensor, offsets: Tensor, queries: Any, query_offsets: Any) -> Int64[Tensor, " b1"]:
    """Return the offsets of queries into those clouds as int64."""
    query_offsets = check_clouds("queries", queries, query_offsets)
    check_devices(points=points, queries=queries)
    if queries.shape[1] != points.shape[1] or len(query_offsets) != len(offsets):
        raise ValueError(
            f"queries must have the points' coordinates and clouds, got {queries.shape[1]} coordinates and "
            f"{len(query_offsets) - 1} clouds for points with {points.shape[1]} and {len(offsets) - 1}"
        )
    return query_offsets


def can_be_read(x: Tensor) -> bool:
    """Return whether numbers may be looked at: a compiler has none, and on CUDA a look would wait for the device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_values(name: str, points: Tensor, offsets: Tensor) -> None:
    ends = offsets.tolist()
    if ends[0] != 0 or ends[-1] != len(points) or any(end < first for first, end in pairwise(ends)):
        raise ValueError(f"the offsets of {name} must rise from 0 to its {len(points)} rows, got {_shortened(ends)}")
    if math.isfinite(points.sum().item()):  # which it is not where one of them is not
        return
    wrong = points.isfinite().all(1).logical_not().nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        raise ValueError(f"{name} must be finite, row {row} is {points[row].tolist()}: leave such rows out")


def _shortened(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"{numbers[:4]} to {numbers[-4:]}".replace("] to [", ", ..., ")
