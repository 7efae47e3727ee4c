"""Which key clusters each query cluster visits, judged by their centroids."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from accel.attention.call import Geometry
from accel.attention.masks.budget import fill_budget
from accel.attention.masks.selection import select_blocks
from accel.attention.orders.clusters import ClusteredTokens
from accel.attention.plan import Sparse
from sparse_kernels import BlockMap, Clusters, Summaries


def centroid_mass(queries: Clusters, keys: Clusters, scale: float) -> Float[Tensor, "b h nq nk"]:
    """Return the softmax over key centroids, each weighted by its number of keys (SVG2, section 4).

    Every row sums to one; an empty cluster gets nothing.
    """
    logits = queries.centroids @ keys.centroids.transpose(-1, -2) * scale
    return (logits + keys.sizes.log()[..., None, :]).softmax(-1)


def select_clusters(
    mass: Float[Tensor, "b h nq nk"],
    q_sizes: Int[Tensor, "b h nq"],
    k_sizes: Int[Tensor, "b h nk"],
    geometry: Geometry,
    *,
    density: float | None,
    top_p: float,
    least_share: float,
) -> Bool[Tensor, "b h nq nk"]:
    """Return the kept pairs of clusters; of each row the heaviest `least_share` of the key clusters come first.

    Without a density this is the published rule: keep the heaviest until they hold `top_p` of the row's mass. With
    one, `top_p` is ignored and takes, for each sample, the value at which all heads together have that density.
    """
    at_least = max(1, int(least_share * mass.shape[-1]))
    if density is not None:
        pairs = geometry.tokens**2
        # Rows and columns of all other tokens are always computed: what they cost is not there for video.
        budget = mass.shape[1] * max(0, int(density * pairs) - (pairs - geometry.video_tokens**2))
        return _select_within(mass, q_sizes, k_sizes, budget, at_least)
    if top_p == 1:  # a rounded sum may reach the whole before the last entries
        return torch.ones_like(mass, dtype=torch.bool)
    return select_blocks(mass, top_p=top_p, at_least=at_least)


def _select_within(
    mass: Float[Tensor, "b h nq nk"],
    q_sizes: Int[Tensor, "b h nq"],
    k_sizes: Int[Tensor, "b h nk"],
    budget: int,
    at_least: int,
) -> Bool[Tensor, "b h nq nk"]:
    """Return what a common top-p keeps that spends `budget` pairs over all heads of a sample."""
    ranked, order = mass.sort(dim=-1, descending=True, stable=True)
    # An entry is kept from that top-p on which its predecessors in the row reach; the forced ones before all others.
    needed = ranked.cumsum(-1) - ranked
    needed[..., :at_least] -= 2
    areas = q_sizes[..., None].long() * k_sizes[..., None, :].expand(mass.shape).gather(-1, order)
    fits = fill_budget(-needed.flatten(1), areas.flatten(1), budget).view(mass.shape)
    fits[..., 0] = True
    return torch.zeros_like(fits).scatter_(-1, order, fits)


def cluster_plan(
    queries: ClusteredTokens,
    keys: ClusteredTokens,
    kept: Bool[Tensor, "b h nq nk"],
    summaries: Summaries | None = None,
) -> Sparse:
    """Return the plan that visits the kept pairs of clusters, and all other tokens."""
    if queries.offsets.shape[-1] > kept.shape[-2] + 1:
        kept = pad(kept, (0, 1, 0, 1), value=True)
    filled = (queries.offsets.diff() > 0)[..., None] & (keys.offsets.diff() > 0)[..., None, :]
    block_map = BlockMap.from_dense(kept & filled, queries.offsets, keys.offsets)
    return Sparse(block_map, queries.order, keys.order, summaries=summaries)
