"""What methods that cluster tokens by k-means have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.masks.cluster_pairs import Ranked, select_clusters
from accel.attention.orders.clusters import ClusteredTokens, Clustering, WarmCentroids
from accel.attention.plan import Dense, Plan, Sparse
from accel.methods.method import Scheduled, check_shares
from accel.naming import check_least
from sparse_kernels import Clusters


@dataclass
class ClusterState:
    """Where the next clustering starts from, the latest plan, its clusters of keys, and how many calls it served."""

    warm: WarmCentroids = field(default_factory=WarmCentroids)
    keys: ClusteredTokens | None = None
    plan: Sparse | None = None
    served: int = 0


@dataclass(frozen=True)
class Clustered(Scheduled):
    """Queries and keys in clusters, warm from step to step; which pairs of them are computed is the method's.

    Cluster counts of None follow the number of tokens. `cluster_dense_steps` clusters in the dense steps already. The
    first call sees only `first_share` of the tokens for `first_iterations`, then all of them for `iterations`; 1 is as
    published. A plan serves `every` sparse steps; published is 1. `top_p` goes with a density of None; a share of
    `least_share` of the key clusters, the heaviest of each row, comes first in any case.
    """

    top_p: float = 0.9
    least_share: float = 0.1
    query_clusters: int | None = None
    key_clusters: int | None = None
    first_iterations: int = 20
    first_share: float = 0.25
    iterations: int = 1
    cluster_dense_steps: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "top_p", "least_share", "first_share")
        check_least(self, 0, "first_iterations", "iterations")
        check_least(self, 1, "query_clusters", "key_clusters", "every")

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return dense in the warm-up, else today's clusters, warm from the step before, and their kept pairs."""
        dense = self.phase(call) != "sparse"
        if dense and not (self.cluster_dense_steps and call.layer >= self.dense_layers):
            return Dense()
        state = memory.of(ClusterState)
        if state.keys is not None and state.plan is not None and state.served < self.every and _fits(call, state.keys):
            state.served += 1
            return self.again(call, state.plan, state.keys)
        cluster = Clustering(
            self.query_clusters, self.key_clusters, self.first_iterations, self.iterations, self.first_share
        )
        queries, keys = cluster(call, state.warm)
        if dense:
            return Dense()
        plan = self.pairs(call, queries, keys)
        if self.every > 1:
            state.keys, state.plan, state.served = keys, plan, 1
        return plan

    @abstractmethod
    def pairs(self, call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens) -> Sparse:
        """Return the plan of the pairs of clusters that are computed."""

    def again(self, call: AttentionCall, plan: Sparse, keys: ClusteredTokens) -> Sparse:
        """Return the plan of an earlier step for a call of today."""
        return plan

    def heaviest(
        self, call: AttentionCall, ranked: Ranked, queries: Clusters, keys: Clusters, least: float
    ) -> Bool[Tensor, "b h nq nk"]:
        """Return the pairs of most mass, by density or top_p, and of each row at least a share of the key clusters."""
        ranks, before, q_sizes, k_sizes = (call.all_heads(each) for each in (*ranked, queries.sizes, keys.sizes))
        kept = select_clusters(
            (ranks, before), q_sizes, k_sizes, call.geometry, density=self.density, top_p=self.top_p, least_share=least
        )
        return call.own_heads(kept)


def _fits(call: AttentionCall, keys: ClusteredTokens) -> bool:
    return keys.order.shape == call.k.shape[:3]
