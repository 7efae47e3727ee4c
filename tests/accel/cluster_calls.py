"""Attention calls whose tokens form clusters, and float64 transcriptions of what the tests of SVG2 and EAR share."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry
from accel.attention.orders.clusters import ClusteredTokens, Clustering, WarmCentroids
from tests.accel.calls import make_call

GRID = (4, 8, 10)
GEOMETRIES = [Geometry(*GRID), Geometry(*GRID, before=13), Geometry(*GRID, after=13), Geometry(*GRID, 5, 8)]
COUNTS = (9, 14)  # query and key clusters


def clustered_call(
    step: int = 0, geometry: Geometry = GEOMETRIES[0], batch: int = 2, heads: int = 3, seed: int = 0
) -> AttentionCall:
    """Return a call of ten steps; its queries, keys and values are noise around sixteen centres."""
    return make_call(step, 10, geometry, seed, batch, heads, centres=16)


def clusters_of(call: AttentionCall) -> tuple[ClusteredTokens, ClusteredTokens]:
    """Return the clusters that a method of COUNTS clusters sees at the first sparse call."""
    return Clustering(*COUNTS, 50, 2, 0.25)(call, WarmCentroids())


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
    tokens, video = call.geometry.tokens, call.geometry.video
    mask = torch.ones(*kept.shape[:2], tokens, tokens, dtype=torch.bool)
    for b in range(kept.shape[0]):
        for h in range(kept.shape[1]):
            rows, columns = queries.clusters.labels[b, h].long(), keys.clusters.labels[b, h].long()
            mask[b, h, video, video] = kept[b, h][rows][:, columns]
    return mask
