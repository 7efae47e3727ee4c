"""Orders that bring tokens of like content together: k-means on the queries and on the keys of every head (SVG2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from accel.attention.call import AttentionCall, Geometry, LayerMemory
from sparse_kernels import Clusters, kmeans

# Mean cluster sizes in tokens when no count is given. Published are 200-300 query and 1000 key clusters at 32,760 to
# 75,600 tokens, so 164-252 and 33-76 tokens each. A fixed size instead of a fixed count keeps clustering the same
# small share of dense attention at every length; query clusters under 64 rows would starve the kernel.
QUERY_CLUSTER_SIZE = 128
KEY_CLUSTER_SIZE = 64


@dataclass(frozen=True)
class ClusteredTokens:
    """The video tokens of one axis in clusters, and the order of the whole sequence that makes these contiguous.

    Text, wherever it sits in the sequence, is one more block at the end of the order, after the clusters.
    """

    clusters: Clusters
    order: Int[Tensor, "b h s"]
    offsets: Int[Tensor, "b h n1"]


def video_slice(geometry: Geometry) -> slice:
    """Return where the video tokens stand in the sequence."""
    first = geometry.text_length if geometry.text_position == "first" else 0
    return slice(first, first + geometry.video_tokens)


def cluster_call(
    call: AttentionCall,
    memory: LayerMemory,
    query_clusters: int | None,
    key_clusters: int | None,
    first_iterations: int,
    iterations: int,
    first_share: float = 1.0,
) -> tuple[ClusteredTokens, ClusteredTokens]:
    """Return the queries and the keys of a call in clusters, each axis by itself (SVG2, section 4).

    The centroids stay in `memory`: the next step starts from them with `iterations` instead of `first_iterations`,
    which see only a random `first_share` of the tokens and are followed by `iterations` over all.
    A count of None is chosen from the number of tokens; there are never more clusters than video tokens.
    """
    tokens = call.geometry.video_tokens
    counts = (query_clusters or round(tokens / QUERY_CLUSTER_SIZE), key_clusters or round(tokens / KEY_CLUSTER_SIZE))
    axes = []
    for name, x, count in zip(("query_centroids", "key_centroids"), (call.q, call.k), counts, strict=True):
        video = x[:, :, video_slice(call.geometry)]
        centroids, rounds = memory.values.get(name), iterations
        if centroids is None or centroids.shape[:2] != x.shape[:2]:
            centroids, rounds = first_centroids(video, min(max(count, 1), tokens)), first_iterations
            if first_share < 1:
                some = _random_places(tokens, max(centroids.shape[2], round(first_share * tokens))).to(x.device)
                rough = kmeans(video[:, :, some], centroids, iterations=rounds, precision="bfloat16")
                centroids, rounds = rough.centroids, iterations
        clusters = kmeans(video, centroids, iterations=rounds, precision="bfloat16")
        memory.values[name] = clusters.centroids
        axes.append(_with_text(clusters, call.geometry))
    return axes[0], axes[1]


def first_centroids(x: Float[Tensor, "b h n d"], count: int) -> Float[Tensor, "b h k d"]:
    """Return random tokens, the same places in every head and generation.

    Published are draws with replacement; a token drawn twice would leave a cluster empty for good. Evenly spaced
    tokens would often stand in one column of the frame.
    """
    return x[:, :, _random_places(x.shape[2], count).to(x.device)].float()


def _random_places(tokens: int, count: int) -> Int[Tensor, " count"]:
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:count]


def _with_text(clusters: Clusters, geometry: Geometry) -> ClusteredTokens:
    order, offsets = clusters.order + video_slice(geometry).start, clusters.offsets
    if geometry.text_length:
        start = 0 if geometry.text_position == "first" else geometry.video_tokens
        text = torch.arange(start, start + geometry.text_length, device=order.device)
        order = torch.cat([order, text.expand(*order.shape[:2], -1)], -1)
        offsets = pad(offsets, (0, 1), value=geometry.tokens)
    return ClusteredTokens(clusters, order, offsets)
