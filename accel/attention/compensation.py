"""Keys that were not computed answer through their cluster's centroid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accel.attention.call import AttentionCall
from accel.attention.orders.clusters import take_rows, video_slice
from sparse_kernels import Clusters

ELEMENTS = 1 << 24  # of the largest buffer: bounds memory, there is never one of (tokens, key clusters) for all heads


@dataclass(frozen=True)
class CentroidCompensation:
    """Each cluster that was left out is one key of weight n, its value the mean of the n values (SVG-EAR, section 4).

    `weights` is log n, -inf for clusters that were computed; `labels` are the video queries' clusters. Text rows
    and columns are always computed, so they take no part.
    """

    labels: Int[Tensor, "b h v"]
    weights: Float[Tensor, "b h nq nk"]
    keys: Float[Tensor, "b h nk d"]
    values: Float[Tensor, "b h nk d"]

    def __call__(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"], lse: Float[Tensor, "b h s"]
    ) -> Float[Tensor, "b h s d"]:
        """Return the output over computed keys and centroids together, merged through the LSE."""
        merged = out.clone()
        video = video_slice(call.geometry)
        keys = self.keys.transpose(-1, -2) * call.scale
        step = max(1, ELEMENTS // self.weights[:, :, 0].numel())
        for first in range(0, self.labels.shape[2], step):
            rows = slice(video.start + first, min(video.start + first + step, video.stop))
            logits = take_rows(self.weights, self.labels[:, :, first : first + step])
            logits += call.q[:, :, rows].float() @ keys
            exact = lse[:, :, rows, None]
            top = torch.maximum(logits.amax(-1, keepdim=True), exact)
            logits.sub_(top).exp_()
            share = (exact - top).exp()
            total = share + logits.sum(-1, keepdim=True)
            merged[:, :, rows] = ((out[:, :, rows].float() * share + logits @ self.values) / total).to(out.dtype)
        return merged


def compensate(
    queries: Clusters, keys: Clusters, values: Float[Tensor, "b h nk d"], kept: Bool[Tensor, "b h nq nk"]
) -> CentroidCompensation:
    """Return the compensation for all clusters of keys that are not kept; `values` are their mean values."""
    weights = keys.sizes.log()[..., None, :].masked_fill(kept, -torch.inf)
    return CentroidCompensation(queries.labels, weights, keys.centroids, values)
