"""What k-means returns."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float32, Int32, Int64
from torch import Tensor


@dataclass(frozen=True)
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
