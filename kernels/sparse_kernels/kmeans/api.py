"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_kernels._backends import choose
from sparse_kernels._checks import check_precision, check_rows, check_types
from sparse_kernels.kmeans.clusters import Clusters


@torch.no_grad()
def kmeans(
    x: Float[Tensor, "b h n d"],
    centroids: Float[Tensor, "b h k d"],
    *,
    iterations: int,
    tolerance: float = 1e-4,
    precision: Literal["float32", "bfloat16"] = "float32",
    backend: str | None = None,
) -> Clusters:
    """Return the clusters of every head's rows after Lloyd's iterations from `centroids` (SVG2, arXiv 2505.18875).

    Distances are squared Euclidean, in float32; of equal ones the first wins. An empty cluster keeps its centroid.
    What is compared is |c|^2 - 2 x c, exact to some 1e-6 |x|^2: rows that lie closer together than a thousandth of
    their length want to be centred first. A head stops by itself when none of its centroids moved farther than
    `tolerance`. With `iterations=0` rows are assigned once and the centroids returned as they came. No n x k matrix
    ever exists.
    With `precision="bfloat16"` the centroids may be rounded to bfloat16 where rows in bfloat16 look for the nearest
    one, which is faster on processors with AVX512_BF16 or AMX; means stay exact.
    ValueError on shapes or types that do not fit, and when `backend` cannot run the call.
    """
    _check(x, centroids, iterations, tolerance, precision)
    module = choose("kmeans", "k-means runs", backend, x, centroids)
    return module.forward(x, centroids, iterations, tolerance, precision)


def _check(x: Tensor, centroids: Tensor, iterations: int, tolerance: float, precision: str) -> None:
    check_rows(x=x, centroids=centroids)
    check_types(x=x)
    check_types(centroids=centroids)
    if x.shape[:2] != centroids.shape[:2] or x.shape[3] != centroids.shape[3]:
        raise ValueError(
            "x and centroids must agree on batch, heads and head_dim, "
            f"got {tuple(x.shape)} and {tuple(centroids.shape)}"
        )
    if not 0 <= iterations < 2**31:
        raise ValueError(f"iterations must be 0 or more and below 2^31, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
    check_precision(precision)
