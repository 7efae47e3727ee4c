"""What a search finds, and the distance that every search compares."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Float32, Int64
from torch import Tensor


class Neighbors(NamedTuple):
    """The neighbours of every query: rows of the packed points, -1 where a cloud has no more, then infinitely far."""

    index: Int64[Tensor, "m k"]
    squared_distance: Float32[Tensor, "m k"]

    @property
    def counts(self) -> Int64[Tensor, " m"]:
        """How many neighbours each query has."""
        return (self.index >= 0).sum(1)


def squared_distances(
    points: Float[Tensor, "*#shape d"], others: Float[Tensor, "*#shape d"]
) -> Float[Tensor, "*broadcast"]:
    """Return squared distances: squares of differences summed axis by axis, each operation rounded by itself.

    Nothing is fused, so that every backend finds the same bits, and with them the same neighbours.
    """
    first, *rest = (points - others).square().unbind(-1)
    for square in rest:
        first = first + square
    return first
