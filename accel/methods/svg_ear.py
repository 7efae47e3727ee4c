"""SVG-EAR (arXiv 2603.08982): SVG2 whose budget goes where centroids err most, and whose rest is compensated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor

from accel.attention.call import AttentionCall
from accel.attention.masks.cluster_error import log_centroid_error, route_by_error
from accel.attention.masks.cluster_pairs import centroid_logits, centroid_mass, cluster_plan
from accel.attention.orders.clusters import ClusteredTokens, summaries_of
from accel.attention.plan import Sparse
from accel.methods.clustered import Clustered
from sparse_kernels import Clusters, pooled, rank_entries


@dataclass(frozen=True)
class SVGEAR(Clustered):
    """Compute the pairs of clusters whose centroids err most for their area; centroids answer for the others.

    The budget of a query cluster is what SVG2 would have spent on it, by `density` or, where that is None, by `top_p`
    (with twice `least_share`); its heaviest `least_share` of the key clusters are always in. `area_exponent` is the
    paper's gamma; the other fields are SVG2's. Density counts computed pairs; the centroids add one key for each key
    cluster. Published: density None, a fifth of the steps dense, 50 and 2 iterations.
    """

    density: float | None = 0.25
    dense_steps: float = 0.1
    area_exponent: float = 1.0

    def pairs(self, call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens) -> Sparse:
        """Return the plan of the pairs routed by error, and the summaries of the others."""
        k, v = (x[:, :, call.geometry.video] for x in (call.k, call.v))
        values = pooled(v, keys.clusters.offsets, keys.clusters.order)
        logits = centroid_logits(queries.clusters, keys.clusters, call.scale)
        error = log_centroid_error(queries.clusters.centroids, k, v, keys.clusters, values, call.scale, logits)
        mass = centroid_mass(logits, keys.clusters.sizes)
        kept = self._route(call, queries.clusters, keys.clusters, mass, error)
        return cluster_plan(queries, keys, kept, summaries_of(keys, values))

    def again(self, call: AttentionCall, plan: Sparse, keys: ClusteredTokens) -> Sparse:
        """Return the plan of an earlier step with the centroids that its clusters have today."""
        k, v = (x[:, :, call.geometry.video] for x in (call.k, call.v))
        centroids, values = (pooled(x, keys.clusters.offsets, keys.clusters.order) for x in (k, v))
        today = replace(keys, clusters=replace(keys.clusters, centroids=centroids))
        return replace(plan, summaries=summaries_of(today, values))

    def _route(
        self,
        call: AttentionCall,
        queries: Clusters,
        keys: Clusters,
        mass: Float[Tensor, "b h nq nk"],
        error: Float[Tensor, "b h nq nk"],
    ) -> Bool[Tensor, "b h nq nk"]:
        ranked = rank_entries(mass)
        allowed = self.heaviest(call, ranked, queries, keys, min(1.0, 2 * self.least_share))
        guaranteed = (ranked[0] < max(1, int(self.least_share * error.shape[-1]))) & allowed
        return route_by_error(error, keys.sizes, guaranteed, allowed, self.area_exponent, crossing=self.density is None)
