"""Sparse VideoGen 2 (arXiv 2505.18875): queries and keys clustered by k-means, the heaviest pairs of clusters kept."""

from __future__ import annotations

from dataclasses import dataclass

from accel.attention.call import AttentionCall
from accel.attention.masks.cluster_pairs import centroid_logits, centroid_mass, cluster_plan
from accel.attention.orders.clusters import ClusteredTokens
from accel.attention.plan import Sparse
from accel.methods.clustered import Clustered
from sparse_kernels import rank_entries


@dataclass(frozen=True)
class SVG2(Clustered):
    """Keep for each query cluster the key clusters that hold `top_p` of its centroid's mass, by measured size.

    A `density` replaces `top_p`: the same rule, its share solved for that density in every call, or for
    half of it among the video's own pairs where other rows use up more than that. Published (code, Wan text to video):
    top_p 0.9, at least `least_share` 0.1 of the key clusters, 50 iterations of k-means in the
    first sparse call and 2 in later ones, a fifth of the steps dense. Ours are 20 and 1 iterations, which give the same
    likeness for three quarters of the planning.
    """

    dense_steps: float = 0.2

    def pairs(self, call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens) -> Sparse:
        """Return the plan of the heaviest pairs."""
        mass = centroid_mass(centroid_logits(queries.clusters, keys.clusters, call.scale), keys.clusters.sizes)
        kept = self.heaviest(call, rank_entries(mass), queries.clusters, keys.clusters, self.least_share)
        return cluster_plan(queries, keys, kept)
