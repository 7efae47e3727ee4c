"""Attention calls whose tokens form clusters, and float64 transcriptions of what the tests of SVG2 and EAR share."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry, LayerMemory, Progress
from accel.attention.orders.clusters import ClusteredTokens, cluster_call, video_slice

GRID = (4, 8, 10)
GEOMETRIES = [Geometry(*GRID), Geometry(*GRID, "first", 13), Geometry(*GRID, "last", 13)]
COUNTS = (9, 14)  # query and key clusters


def make_call(
    step: int = 0, geometry: Geometry = GEOMETRIES[0], batch: int = 2, heads: int = 3, seed: int = 0
) -> AttentionCall:
    """Return a call of ten steps; its queries, keys and values are noise around sixteen centres."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 16, (3, batch, heads, geometry.tokens, 1), generator=generator)
    centres = torch.randn(3, batch, heads, 16, 16, generator=generator)
    noise = torch.randn(3, batch, heads, geometry.tokens, 16, generator=generator)
    q, k, v = (centres.gather(3, places.expand(-1, -1, -1, -1, 16)) * 1.5 + 0.7 * noise).unbind()
    return AttentionCall(q, k, v, 0, 2, geometry, Progress(step, 10, "cond"))


def clusters_of(call: AttentionCall) -> tuple[ClusteredTokens, ClusteredTokens]:
    """Return the clusters that a method of COUNTS clusters sees at the first sparse call."""
    return cluster_call(call, LayerMemory(), *COUNTS, 50, 2, 0.25)


def brute_mass(call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens) -> Tensor:
    """Return the size-weighted softmax over key centroids in float64, weight by weight."""
    q, k = queries.clusters.centroids.double(), keys.clusters.centroids.double()
    weights = torch.exp(q @ k.transpose(-1, -2) * call.scale) * keys.clusters.sizes[..., None, :].double()
    return weights / weights.sum(-1, keepdim=True)


def brute_top_p(mass: Tensor, top_p: float, least: int) -> Tensor:
    """Return the published selection: drop an entry once its predecessors exceed `top_p`, except the first `least`."""
    kept = torch.zeros(mass.shape, dtype=torch.bool)
    for row, marks in zip(mass.flatten(0, -2), kept.view(-1, mass.shape[-1]), strict=True):
        before = 0.0
        for rank, index in enumerate(row.argsort(descending=True).tolist()):
            marks[index] = before <= top_p or rank < least
            before += float(row[index])
    return kept


def token_mask(call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens, kept: Tensor) -> Tensor:
    """Return which pairs of tokens are computed, in the order of the sequence; text pairs all are."""
    tokens, video = call.geometry.tokens, video_slice(call.geometry)
    mask = torch.ones(*kept.shape[:2], tokens, tokens, dtype=torch.bool)
    for b in range(kept.shape[0]):
        for h in range(kept.shape[1]):
            rows, columns = queries.clusters.labels[b, h].long(), keys.clusters.labels[b, h].long()
            mask[b, h, video, video] = kept[b, h][rows][:, columns]
    return mask


def dense(call: AttentionCall, mask: Tensor | None = None) -> Tensor:
    """Return attention over the masked pairs in float64."""
    scores = call.q.double() @ call.k.double().transpose(-1, -2) * call.scale
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ call.v.double()
