"""How wrong it would be to let a key cluster's centroid stand for its keys, and where to spend the budget then."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accel.attention.budget import fill_budget
from accel.attention.orders.clusters import take_rows
from sparse_kernels import Clusters, pooled

ELEMENTS = 1 << 24  # of the largest buffer: bounds memory, there is never one of (query clusters, keys) for all heads
SMALLEST = 1e-8
LARGEST_EXPONENT = 30.0  # keeps the square of a weight finite; beyond it the cluster is chosen anyway


def log_centroid_error(
    queries: Float[Tensor, "b h nq d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    keys: Clusters,
    values: Float[Tensor, "b h nk d"],
    scale: float,
) -> Float[Tensor, "b h nq nk"]:
    """Return log sum_t |exp(q k_t) v_t - exp(q k_c) v_c|^2 over the keys t of each cluster (SVG-EAR, section 4).

    q are query centroids, k_c and v_c (`values`) the cluster's; `k` and `v` are in the order of the clusters. With
    g = exp(q (k_t - k_c)) - 1 the term of one key is exp(2 q k_c) |g v_t + v_t - v_c|^2, which stays exact where
    the error vanishes.
    """
    labels = keys.labels.gather(-1, keys.order)
    rest, value = k.float() - take_rows(keys.centroids, labels), v.float()
    gap = value - take_rows(values, labels)
    squared, constant = value.square().sum(-1, keepdim=True), gap.square().sum(-1, keepdim=True)
    cross = 2 * (value * gap).sum(-1, keepdim=True)
    step = max(1, ELEMENTS // rest[..., 0].numel())
    errors = []
    for part in (queries * scale).split(step, 2):
        growth = (rest @ part.transpose(-1, -2)).clamp_(max=LARGEST_EXPONENT).expm1_()
        error = (squared * growth).add_(cross).mul_(growth).add_(constant)
        errors.append(pooled(error, keys.offsets).transpose(-1, -2))
    total = torch.cat(errors, 2).clamp_(min=0) * keys.sizes[..., None, :] + SMALLEST
    return total.log() + 2 * scale * (queries @ keys.centroids.transpose(-1, -2))


def route_by_error(
    log_error: Float[Tensor, "b h nq nk"],
    key_sizes: Int[Tensor, "b h nk"],
    guaranteed: Bool[Tensor, "b h nq nk"],
    allowed: Bool[Tensor, "b h nq nk"],
    area_exponent: float,
    *,
    crossing: bool,
) -> Bool[Tensor, "b h nq nk"]:
    """Return the clusters of the largest error per area, as many keys a row as `allowed` has (SVG-EAR, section 4).

    `guaranteed` ones come first. With `crossing` the cluster that oversteps a row's budget is kept, as published.
    """
    sizes = key_sizes[..., None, :]
    # The number of queries is the same for all entries of a row, so it does not change their order.
    scores = log_error - area_exponent * sizes.clamp(min=1).log()
    scores = scores.masked_fill(sizes == 0, -torch.inf).masked_fill(guaranteed, torch.inf)
    budget = (allowed * sizes).sum(-1, keepdim=True)
    return fill_budget(scores, sizes, budget, crossing=crossing) | guaranteed
