"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sparse_kernels._backends import choose_backend
from sparse_kernels.block_scores.checks import DTYPES
from sparse_kernels.centroids import reference
from sparse_kernels.kmeans import Clusters


@torch.no_grad()
def centroid_error(
    queries: Float[Tensor, "b h nq d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    keys: Clusters,
    values: Float[Tensor, "b h nk d"],
    *,
    scale: float,
    backend: str | None = None,
) -> Float32[Tensor, "b h nq nk"]:
    """Return sum_t |g v_t + v_t - v_c|^2 over the keys t of each cluster, with g = exp(q (k_t - k_c) scale) - 1.

    Times exp(2 q k_c scale) this is the squared error of a centroid's answer to the query centroid q (SVG-EAR, arXiv
    2603.08982, section 4); `values` are the clusters' mean values v_c. The exponent of g is held at 30 at most.
    ValueError on shapes or types that do not fit, and when `backend` cannot run the call.
    """
    _check_pair("k", k, "v", v)
    _check_like("queries", queries, k)
    _check_like("values", values, keys.centroids)
    _check_clusters("keys", keys, k)
    return _module(backend, k).centroid_error(queries.float(), k, v, keys, values.float(), scale)


@torch.no_grad()
def merge_centroids(
    q: Float[Tensor, "b h n d"],
    out: Float[Tensor, "b h n d"],
    lse: Float[Tensor, "b h n"],
    queries: Clusters,
    weights: Float[Tensor, "b h nq nk"],
    centroids: Float[Tensor, "b h nk d"],
    values: Float[Tensor, "b h nk d"],
    *,
    scale: float,
    backend: str | None = None,
) -> Float[Tensor, "b h n d"]:
    """Return attention over computed keys (`out`, natural `lse`) and over centroids together (SVG-EAR, section 4).

    A centroid's logit is q k_c scale + the weight of the row's query cluster for it: the logarithm of how many keys it
    stands for, -inf for none. No tensor of rows x centroids exists on the CPU, and one of bounded size elsewhere.
    ValueError on shapes or types that do not fit, and when `backend` cannot run the call.
    """
    _check_pair("q", q, "out", out)
    _check_like("centroids", centroids, q)
    _check_like("values", values, centroids)
    _check_clusters("queries", queries, q)
    wanted = (*queries.sizes.shape, centroids.shape[2])
    if lse.shape != q.shape[:3] or weights.shape != wanted:
        raise ValueError(
            f"lse and weights must be {tuple(q.shape[:3])} and {wanted}, "
            f"got {tuple(lse.shape)} and {tuple(weights.shape)}"
        )
    return _module(backend, q).merge_centroids(
        q, out, lse.float(), queries, weights.float(), centroids.float(), values.float(), scale
    )


def _module(backend: str | None, x: Tensor) -> ModuleType:
    if backend is None and x.is_cuda:
        return reference  # a few large products, which a GPU does well without a kernel of ours
    return choose_backend("sparse_kernels.centroids", "centroids are weighed", backend, x)


def _check_pair(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape or x.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must be (b h n d) of one shape and not empty, "
            f"got {tuple(x.shape)} and {tuple(other.shape)}"
        )
    if x.dtype not in DTYPES or x.dtype != other.dtype:
        raise ValueError(
            f"{name} and {other_name} must share one of float32, bfloat16, float16, got {x.dtype} and {other.dtype}"
        )
    if x.device != other.device:
        raise ValueError(f"{other_name} is on {other.device}, {name} on {x.device}: move it there")


def _check_like(name: str, x: Tensor, like: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape or (*x.shape[:2], x.shape[3]) != (*like.shape[:2], like.shape[3]):
        raise ValueError(
            f"{name} must be (b h n d) with b, h and d of {tuple(like.shape)} and not empty, got {tuple(x.shape)}"
        )
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, the tokens on {like.device}: move it there")


def _check_clusters(name: str, clusters: Clusters, x: Tensor) -> None:
    if clusters.order.shape != x.shape[:3] or clusters.centroids.shape[3] != x.shape[3]:
        raise ValueError(
            f"{name} must be the clusters of {tuple(x.shape[:3])} tokens of {x.shape[3]} channels, "
            f"got those of {tuple(clusters.order.shape)} with {clusters.centroids.shape[3]}"
        )
