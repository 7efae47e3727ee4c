"""How wrong it would be to let a key cluster's centroid stand for its keys, and where to spend the budget then."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_kernels import Clusters, centroid_log_error, fill_budget

SMALLEST = 1e-8


def log_centroid_error(
    queries: Float[Tensor, "b h nq d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    keys: Clusters,
    values: Float[Tensor, "b h nk d"],
    scale: float,
    logits: Float[Tensor, "b h nq nk"],
) -> Float[Tensor, "b h nq nk"]:
    """Return log sum_t |exp(q k_t) v_t - exp(q k_c) v_c|^2 over the keys t of each cluster (SVG-EAR, section 4).

    q are query centroids, k_c and v_c (`values`) the cluster's, `logits` all q k_c times the scale. Exponents may be
    rounded as keys in bfloat16 are.
    """
    error = centroid_log_error(queries, k, v, keys, values, scale=scale, precision="bfloat16")
    return error.logaddexp(error.new_full((), math.log(SMALLEST))) + 2 * logits


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
