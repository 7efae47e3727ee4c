"""Which key clusters each query cluster visits, judged by their centroids."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from accel.attention.call import Geometry
from accel.attention.orders.clusters import ClusteredTokens
from accel.attention.plan import Sparse
from sparse_kernels import BlockMap, Clusters, Summaries, fill_budget

# Of the density, among pairs of the video alone: reference pictures or history may cost most of it, or more.
LEAST_OF_VIDEO = 0.5
Ranked = tuple[Int[Tensor, "b h nq nk"], Float[Tensor, "b h nq nk"]]  # what rank_entries returns of the mass


def centroid_logits(queries: Clusters, keys: Clusters, scale: float) -> Float[Tensor, "b h nq nk"]:
    """Return the scores of the query centroids with the key centroids."""
    return queries.centroids @ keys.centroids.transpose(-1, -2) * scale


def centroid_mass(logits: Float[Tensor, "b h nq nk"], sizes: Int[Tensor, "b h nk"]) -> Float[Tensor, "b h nq nk"]:
    """Return the softmax over key centroids, each weighted by its number of keys (SVG2, section 4).

    Every row sums to one; an empty cluster gets nothing.
    """
    return (logits + sizes.log()[..., None, :]).softmax(-1)


def select_clusters(
    ranked: Ranked,
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
    one, `top_p` is ignored and takes, for each sample, the value at which all heads together have that density;
    where rows that are no video leave the video less than half of it, half of it goes to the video's own pairs.
    `ranked` is the mass of each row, which sums to one, by `rank_entries`.
    """
    ranks, before = ranked
    at_least = max(1, int(least_share * ranks.shape[-1]))
    if density is not None:
        pairs, of_video = geometry.tokens**2, geometry.video_tokens**2
        # Rows and columns of all other tokens are always computed: what they cost is not there for video.
        budget = max(int(density * pairs) - (pairs - of_video), int(LEAST_OF_VIDEO * density * of_video))
        budget *= ranks.shape[1]
        return _select_within(ranked, q_sizes, k_sizes, budget, at_least)
    if top_p == 1:  # a rounded sum may reach the whole before the last entries
        return torch.ones_like(ranks, dtype=torch.bool)
    return (before < top_p) | (ranks < at_least)


def _select_within(
    ranked: Ranked,
    q_sizes: Int[Tensor, "b h nq"],
    k_sizes: Int[Tensor, "b h nk"],
    budget: int,
    at_least: int,
) -> Bool[Tensor, "b h nq nk"]:
    """Return what a common top-p keeps that spends `budget` pairs over all heads of a sample."""
    # An entry is kept from that top-p on which its predecessors in the row reach; the forced ones before all others.
    ranks, needed = ranked
    scores = 2 * (ranks < at_least) - needed
    areas = q_sizes[..., None].long() * k_sizes[..., None, :]
    fits = fill_budget(scores.flatten(1), areas.flatten(1), budget).view(ranks.shape)
    return fits | (ranks == 0)


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
