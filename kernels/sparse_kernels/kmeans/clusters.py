"""What k-means returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from sparse_kernels._checks import described
from sparse_kernels._tensors import same_fields

FIELDS = {"labels": 3, "centroids": 4, "sizes": 3, "order": 3, "offsets": 3}  # and how many dimensions each has
TYPES = {"centroids": torch.float32, "order": torch.int64}  # the others are int32


@dataclass(frozen=True, eq=False)
class Clusters:
    """Rows in clusters, and the order that brings each cluster's rows together.

    `labels` come from the last assignment, `centroids` from the update after it. The rows of cluster c are
    `order[..., offsets[c] : offsets[c + 1]]`, in rising order; `order` and `offsets` are what a BlockMap and the
    attention take.
    """

    labels: Int32[Tensor, "b h n"]
    centroids: Float32[Tensor, "b h k d"]
    sizes: Int32[Tensor, "b h k"]
    order: Int64[Tensor, "b h n"]
    offsets: Int32[Tensor, "b h k1"]

    def __post_init__(self) -> None:
        for name, dimensions in FIELDS.items():
            field, dtype = getattr(self, name), TYPES.get(name, torch.int32)
            if not isinstance(field, Tensor) or field.dtype != dtype or field.ndim != dimensions:
                raise ValueError(f"{name} must be {dtype} with {dimensions} dimensions, got {described(field)}")
        (batch, heads, rows), (_, _, clusters, channels) = self.labels.shape, self.centroids.shape
        wanted = {"centroids": (clusters, channels), "sizes": (clusters,), "order": (rows,), "offsets": (clusters + 1,)}
        for name, sizes in wanted.items():
            if getattr(self, name).shape != (batch, heads, *sizes):
                given = tuple(getattr(self, name).shape)
                raise ValueError(f"{name} must be {(batch, heads, *sizes)}, as labels and centroids are, got {given}")

    def __eq__(self, other: object) -> bool:
        """Return whether all numbers are the same; reads from the device."""
        return same_fields(self, other)

    def __hash__(self) -> int:
        return hash((self.labels.shape, self.centroids.shape))
