"""Sparse VideoGen 2 (arXiv 2505.18875): queries and keys clustered by k-means, the heaviest pairs of clusters kept."""

from __future__ import annotations

from dataclasses import dataclass

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.masks.cluster_pairs import centroid_mass, cluster_plan, select_clusters
from accel.attention.orders.clusters import cluster_call
from accel.attention.plan import Dense, Plan
from accel.attention.schedule import is_dense
from accel.methods.checks import check_clusters


@dataclass(frozen=True)
class SVG2:
    """Keep for each query cluster the key clusters that hold `top_p` of its centroid's mass, by measured size.

    A `density` replaces `top_p`: the same rule, its share solved for that density in every call. Published (code,
    Wan text to video): top_p 0.9, at least `least_share` 0.1 of the key clusters, 50 iterations of k-means in the
    first sparse call and 2 in later ones, a fifth of the steps dense. Cluster counts of None follow the number of
    tokens. `cluster_dense_steps` clusters in the dense steps already. Ours are 20 and 1 iterations, which give the same
    likeness for three quarters of the planning, and that the first ones see only `first_share` of the tokens, and the
    usual number of later ones all of them; 1 is as published.
    """

    density: float | None = None
    dense_steps: float = 0.2
    dense_layers: int = 0
    top_p: float = 0.9
    least_share: float = 0.1
    query_clusters: int | None = None
    key_clusters: int | None = None
    first_iterations: int = 20
    first_share: float = 0.25
    iterations: int = 1
    cluster_dense_steps: bool = False

    def __post_init__(self) -> None:
        check_clusters(self)

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return dense in the warm-up, else today's clusters, warm from the step before, and their kept pairs."""
        dense = is_dense(call, self.dense_steps, self.dense_layers)
        if dense and not (self.cluster_dense_steps and call.layer >= self.dense_layers):
            return Dense()
        queries, keys = cluster_call(
            call,
            memory,
            self.query_clusters,
            self.key_clusters,
            self.first_iterations,
            self.iterations,
            self.first_share,
        )
        if dense:
            return Dense()
        mass = centroid_mass(queries.clusters, keys.clusters, call.scale)
        kept = select_clusters(
            mass,
            queries.clusters,
            keys.clusters,
            call.geometry,
            density=self.density,
            top_p=self.top_p,
            least_share=self.least_share,
        )
        return cluster_plan(queries, keys, kept)
