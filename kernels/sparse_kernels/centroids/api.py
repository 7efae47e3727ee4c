"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._backends import choose
from sparse_kernels._checks import (
    check_devices,
    check_order,
    check_precision,
    check_rows,
    check_types,
    described,
    shared_offsets,
)
from sparse_kernels.kmeans import Clusters


@torch.no_grad()
def centroid_log_error(
    queries: Float[Tensor, "b h nq d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    keys: Clusters,
    values: Float[Tensor, "b h nk d"],
    *,
    scale: float,
    precision: Literal["float32", "bfloat16"] = "float32",
    backend: str | None = None,
) -> Float32[Tensor, "b h nq nk"]:
    """Return log sum_t |g v_t + v_t - v_c|^2 over the keys t of each cluster, with g = exp(q (k_t - k_c) scale) - 1.

    With 2 q k_c scale added this is the logarithm of the squared error of a centroid's answer to the query centroid q
    (SVG-EAR, arXiv 2603.08982, section 4); `values` are the clusters' mean values v_c. It is -inf where there is no
    error, and right for exponents of any size. With `precision="bfloat16"` q and k_t - k_c may be rounded to bfloat16
    where keys are bfloat16, which is faster on processors with AMX: exponents are then right to 2^-7 of their terms.
    ValueError on shapes or types that do not fit, and when `backend` cannot run the call.
    """
    check_rows(k=k, v=v, queries=queries, values=values)
    check_types(k=k, v=v)
    _check_clusters("keys", keys, k)
    _check_shapes(k.shape, v=v)
    _check_shapes((*k.shape[:2], queries.shape[2], k.shape[3]), queries=queries)
    _check_shapes(keys.centroids.shape, values=values)
    check_precision(precision)
    return _module(backend, k).centroid_log_error(queries.float(), k, v, keys, values.float(), scale, precision)


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
    stands for, -inf for none; where no key was computed either, `out` stays as it is. No tensor of rows x centroids
    exists on the CPU, and one of bounded size elsewhere.
    ValueError on shapes or types that do not fit, and when `backend` cannot run the call.
    """
    check_rows(q=q, out=out, centroids=centroids, values=values)
    check_types(q=q, out=out)
    _check_clusters("queries", queries, q)
    _check_shapes(q.shape, out=out)
    _check_shapes((*q.shape[:2], centroids.shape[2], q.shape[3]), centroids=centroids, values=values)
    _check_shapes(q.shape[:3], lse=lse)
    _check_shapes((*queries.sizes.shape, centroids.shape[2]), weights=weights)
    check_devices(q=q, lse=lse, weights=weights)
    return _module(backend, q).merge_centroids(
        q, out, lse.float(), queries, weights.float(), centroids.float(), values.float(), scale
    )


def _module(backend: str | None, x: Tensor) -> ModuleType:
    return choose("centroids", "centroids are weighed", backend, x, level=5)


def _check_shapes(shape: tuple[int, ...], **tensors: Any) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape != shape:
            raise ValueError(f"{name} must be a floating-point tensor of shape {tuple(shape)}, got {described(x)}")


def _check_clusters(name: str, clusters: Any, x: Tensor) -> None:
    """Refuse what are not the clusters of the rows of `x`; on the CPU they are read, since kernels trust them."""
    if not isinstance(clusters, Clusters):
        raise ValueError(f"{name} must be Clusters, which kmeans returns, got {described(clusters)}")
    if clusters.order.shape != x.shape[:3] or clusters.centroids.shape[3] != x.shape[3]:
        raise ValueError(
            f"{name} must be the clusters of {tuple(x.shape[:3])} tokens of {x.shape[3]} channels, "
            f"got those of {tuple(clusters.order.shape)} with {clusters.centroids.shape[3]}"
        )
    check_devices(**{"the tokens": x} | {f"{name}.{field}": tensor for field, tensor in vars(clusters).items()})
    shared_offsets(f"{name}.offsets", clusters.offsets, x, x.shape[2])
    check_order(f"{name}.order", clusters.order, x, x.shape[2])
    if x.device.type == "cpu":
        least, most = (int(label) for label in clusters.labels.aminmax())
        if least < 0 or most >= clusters.sizes.shape[2] or not torch.equal(clusters.sizes, clusters.offsets.diff()):
            raise ValueError(f"{name}.labels and {name}.sizes must be those of its {clusters.sizes.shape[2]} clusters")
        if not _are_in_order(clusters):
            raise ValueError(f"{name}.order must bring the labels of each cluster together, between its offsets")


def _are_in_order(clusters: Clusters) -> bool:
    """Return whether labels rise in the clusters' order, and change where the next cluster begins."""
    if _extension.at_hand(clusters.order):
        fields = (clusters.labels, clusters.order, clusters.offsets)
        return bool(torch.ops.sparse_kernels.orders_labels_cpu(*(x.flatten(0, 1).contiguous() for x in fields)))
    labels = clusters.labels.gather(-1, clusters.order)
    first, last = clusters.offsets[..., :-1], clusters.offsets[..., 1:] - 1
    ends = torch.stack([first, last.clamp(min=0)]).clamp(max=labels.shape[-1] - 1).long()
    found = labels.expand(2, *labels.shape).gather(-1, ends)
    expected = torch.arange(first.shape[-1], dtype=labels.dtype, device=labels.device)
    return bool((labels.diff() >= 0).all() and ((found == expected) | (clusters.sizes == 0)).all())
