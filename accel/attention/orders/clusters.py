"""Orders that bring tokens of like content together: k-means on the queries and on the keys of every head (SVG2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from accel.attention.call import AttentionCall, Geometry
from accel.attention.orders.side_by_side import side_by_side
from sparse_kernels import Clusters, Summaries, kmeans

# Mean cluster sizes in tokens when no count is given. Published are 200-300 query and 1000 key clusters at 32,760 to
# 75,600 tokens, so 164-252 and 33-76 tokens each. A fixed size instead of a fixed count keeps clustering the same
# small share of dense attention at every length; query clusters under 64 rows would starve the kernel.
QUERY_CLUSTER_SIZE = 128
KEY_CLUSTER_SIZE = 64


@dataclass(frozen=True)
class ClusteredTokens:
    """The video tokens of one axis in clusters, and the order of the whole sequence that makes these contiguous.

    All other rows, wherever they stand in the sequence, are one more block at the end of the order.
    """

    clusters: Clusters
    order: Int[Tensor, "b h s"]
    offsets: Int[Tensor, "b h n1"]


@dataclass
class WarmCentroids:
    """Where the next step starts from; None before the first."""

    queries: Float[Tensor, "b h nq d"] | None = None
    keys: Float[Tensor, "b h nk d"] | None = None


@dataclass(frozen=True)
class Clustering:
    """How a call is clustered: cluster counts (None: from the number of tokens), and iterations of k-means.

    The first call sees only a random `first_share` of the tokens for `first_iterations`, then all for `iterations`.
    """

    query_clusters: int | None
    key_clusters: int | None
    first_iterations: int
    iterations: int
    first_share: float = 1.0

    def __call__(self, call: AttentionCall, warm: WarmCentroids) -> tuple[ClusteredTokens, ClusteredTokens]:
        """Return the queries and the keys of a call in clusters, each axis by itself (SVG2, section 4).

        The centroids stay in `warm`. There are never more clusters than video tokens.
        """
        q, k = (x[:, :, call.geometry.video] for x in (call.q, call.k))
        tokens = call.geometry.video_tokens
        queries = self._cluster(q, warm.queries, self.query_clusters or round(tokens / QUERY_CLUSTER_SIZE))
        keys = self._cluster(k, warm.keys, self.key_clusters or round(tokens / KEY_CLUSTER_SIZE))
        warm.queries, warm.keys = queries.centroids, keys.centroids
        return _whole(queries, call.geometry), _whole(keys, call.geometry)

    def _cluster(self, video: Float[Tensor, "b h n d"], warm: Tensor | None, count: int) -> Clusters:
        if warm is not None and warm.shape[:2] == video.shape[:2]:
            return kmeans(video, warm, iterations=self.iterations, precision="bfloat16")
        tokens = video.shape[2]
        start, iterations = first_centroids(video, min(max(count, 1), tokens)), self.first_iterations
        if self.first_share < 1:
            some = _random_places(tokens, max(start.shape[2], round(self.first_share * tokens))).to(video.device)
            start = kmeans(video[:, :, some], start, iterations=iterations, precision="bfloat16").centroids
            iterations = self.iterations
        return kmeans(video, side_by_side(start), iterations=iterations, precision="bfloat16")


def first_centroids(x: Float[Tensor, "b h n d"], count: int) -> Float[Tensor, "b h k d"]:
    """Return random tokens, the same places in every head and generation.

    Published are draws with replacement; a token drawn twice would leave a cluster empty for good. Evenly spaced
    tokens would often stand in one column of the frame.
    """
    return x[:, :, _random_places(x.shape[2], count).to(x.device)].float()


def _random_places(tokens: int, count: int) -> Int[Tensor, " count"]:
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:count]


def _whole(clusters: Clusters, geometry: Geometry) -> ClusteredTokens:
    order, offsets = clusters.order, clusters.offsets
    if geometry.video.start:
        order = order + geometry.video.start
    if geometry.tokens > geometry.video_tokens:
        rest = geometry.rest_rows(order.device)
        order = torch.cat([order, rest.expand(*order.shape[:2], -1)], -1)
        offsets = pad(offsets, (0, 1), value=geometry.tokens)
    return ClusteredTokens(clusters, order, offsets)


def summaries_of(keys: ClusteredTokens, values: Float[Tensor, "b h nk d"]) -> Summaries:
    """Return each cluster's centroid and mean value, weighted by its number of keys (SVG-EAR, section 4).

    What is no video has a block but no summary: everybody visits it.
    """
    centroids, weights = keys.clusters.centroids, keys.clusters.sizes.log()
    if keys.offsets.shape[-1] > keys.clusters.offsets.shape[-1]:
        centroids, values = (pad(x, (0, 0, 0, 1)) for x in (centroids, values))
        weights = pad(weights, (0, 1), value=-math.inf)
    return Summaries(centroids, values, weights)
