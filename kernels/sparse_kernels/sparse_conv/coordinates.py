"""Checked coordinates as single integers, so that a neighbour is found by one addition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_kernels._checks import described

LARGEST = 2**31  # of one axis, and of the number of rows
MOST_SLOTS = 2**15  # of a kernel: 31 on each of three axes; a map has a row for each


def per_axis(name: str, value: int | Sequence[int], axes: int, least: int) -> tuple[int, ...]:
    """Return one integer for each axis; ValueError unless all are at least `least`."""
    values = (value,) * axes if isinstance(value, int) else tuple(int(item) for item in value)
    if len(values) != axes or min(values) < least:
        raise ValueError(f"{name} must be one integer of at least {least}, or {axes} of them, got {value}")
    return values


def kernel_sizes(kernel: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return the kernel's size on each axis; ValueError below 1, or with more slots than a map could hold rows for."""
    sizes = per_axis("kernel", kernel, axes, 1)
    if math.prod(sizes) > MOST_SLOTS:
        raise ValueError(f"kernel has {math.prod(sizes)} slots, got {kernel}; at most {MOST_SLOTS} are accepted")
    return sizes


def check_coordinates(coordinates: Int[Tensor, "n columns"], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple; ValueError on coordinates that are no integers, outside it, or of other columns."""
    if not 1 <= len(shape) <= 4 or not all(1 <= size < LARGEST for size in shape):
        raise ValueError(f"shape must have 1 to 4 sizes between 1 and 2^31 - 1, got {tuple(shape)}")
    fits = isinstance(coordinates, Tensor) and coordinates.dtype in (torch.int32, torch.int64)
    if not fits or coordinates.ndim != 2 or coordinates.shape[1] != len(shape) + 1 or coordinates.is_meta:
        raise ValueError(
            f"coordinates must be int32 or int64 of shape (rows, {len(shape) + 1}): batch, then {len(shape)} axes of "
            f"the shape {tuple(shape)}; got {described(coordinates)}"
        )
    if len(coordinates) >= LARGEST:
        raise ValueError(f"there may be at most 2^31 - 1 rows, got {len(coordinates)}")
    if len(coordinates) and ((least := coordinates.amin(0)) < 0).any():
        raise ValueError(f"coordinates must not be negative, the smallest are {least.tolist()}; subtract the minimum")
    most = coordinates.amax(0).tolist() if len(coordinates) else [0] * (len(shape) + 1)
    if any(reach >= size for reach, size in zip(most, (LARGEST, *shape), strict=True)):
        raise ValueError(
            f"coordinates reach {most}, outside the shape (batch below 2^31, {', '.join(map(str, shape))}); "
            "give a larger shape or drop those rows"
        )
    return tuple(int(size) for size in shape)


def linear_keys(
    coordinates: Int[Tensor, "n columns"], shape: Sequence[int], margin: Sequence[int]
) -> tuple[Int[Tensor, " n"], list[int]]:
    """Return each row's number in a grid with a margin around every axis, and the grid's steps along the axes.

    No step of at most the margin leads from one line of the grid into the next. ValueError where 63 bits do not do.
    """
    sizes = [size + 2 * border for size, border in zip(shape, margin, strict=True)]
    check_places(coordinates, sizes)
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    keys = coordinates[:, 0].long() * math.prod(sizes)
    for axis, step in enumerate(steps):
        keys += (coordinates[:, axis + 1].long() + margin[axis]) * step
    return keys, steps


def check_places(coordinates: Int[Tensor, "n columns"], sizes: Sequence[int]) -> None:
    """Raise ValueError if a grid of these sizes for every batch cannot be numbered in 63 bits."""
    batches = int(coordinates[:, 0].amax()) + 1 if len(coordinates) else 1
    if batches * math.prod(sizes) >= 2**63:
        raise ValueError(f"{batches} batches of the shape {tuple(sizes)} have more than 2^63 places; split the scene")


def slots(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the places in a kernel in the order of its weights: row-major, the last axis fastest."""
    return list(itertools.product(*(range(size) for size in kernel)))
