"""The definition of k-means: torch only, any device; a chunk of rows against all centroids at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels.kmeans.clusters import Clusters

ROWS = 1024  # rows compared with all centroids at once: bounds memory, no (n k) tensor ever exists


def can_run(x: Tensor, centroids: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


def forward(
    x: Float[Tensor, "b h n d"],
    centroids: Float[Tensor, "b h k d"],
    iterations: int,
    tolerance: float,
    precision: str = "float32",
) -> Clusters:
    """Return the clusters of every head, as exact as float32 in either precision."""
    heads = [
        _cluster_head(rows, start, iterations, tolerance)
        for rows, start in zip(x.float().flatten(0, 1), centroids.float().flatten(0, 1), strict=True)
    ]
    return Clusters(*(torch.stack(fields).unflatten(0, x.shape[:2]) for fields in zip(*heads, strict=True)))


def _cluster_head(
    x: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    labels = _nearest(x, centroids)
    for iteration in range(iterations):
        if iteration > 0:
            labels = _nearest(x, centroids)
        previous, centroids = centroids, _means(x, labels, centroids)
        if not (centroids - previous).norm(dim=-1).max() > tolerance:
            break
    order, offsets = _sort(labels, centroids.shape[0])
    return labels.int(), centroids, offsets.diff().int(), order, offsets.int()


def _nearest(x: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    # A product of matrices in float32 may round equal columns differently (MKL with AVX2 does), and the first must win.
    centroids = centroids.double()
    norms = centroids.square().sum(-1)
    distances = (torch.addmm(norms, rows.double(), centroids.T, alpha=-2).float() for rows in x.split(ROWS))
    return torch.cat([each.argmin(-1) for each in distances])


def _sort(labels: Int[Tensor, " n"], clusters: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " k1"]]:
    offsets = torch.zeros(clusters + 1, dtype=torch.int64, device=labels.device)
    offsets[1:] = torch.bincount(labels, minlength=clusters).cumsum(0)
    return labels.argsort(stable=True), offsets


def _means(x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], centroids: Float[Tensor, "k d"]) -> Tensor:
    """Sum each cluster's rows in their order: the same bits at every run; an empty cluster keeps its centroid."""
    order, offsets = _sort(labels, centroids.shape[0])
    sums = torch.segment_reduce(x[order].double(), "sum", offsets=offsets, axis=0, initial=0)
    sizes = offsets.diff()[:, None]
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids.double()).float()
