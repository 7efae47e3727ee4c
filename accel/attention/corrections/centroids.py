"""Keys that were not computed answer through their cluster's centroid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accel.attention.call import AttentionCall
from sparse_kernels import Clusters, merge_centroids


@dataclass(frozen=True)
class CentroidCompensation:
    """Each cluster that was left out is one key of weight n, its value the mean of the n values (SVG-EAR, section 4).

    `weights` is log n, -inf for clusters that were computed. Rows and columns that are no video are always computed
    and take no part.
    """

    queries: Clusters
    weights: Float[Tensor, "b h nq nk"]
    keys: Float[Tensor, "b h nk d"]
    values: Float[Tensor, "b h nk d"]

    def __call__(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"], lse: Float[Tensor, "b h s"]
    ) -> Float[Tensor, "b h s d"]:
        """Return the output over computed keys and centroids together, merged through the LSE."""
        video = call.geometry.video
        q, exact, exact_lse = (x[:, :, video] for x in (call.q, out, lse))
        merged = merge_centroids(
            q, exact, exact_lse, self.queries, self.weights, self.keys, self.values, scale=call.scale
        )
        if call.geometry.tokens == call.geometry.video_tokens:
            return merged
        out[:, :, video] = merged
        return out


def compensate(
    queries: Clusters, keys: Clusters, values: Float[Tensor, "b h nk d"], kept: Bool[Tensor, "b h nq nk"]
) -> CentroidCompensation:
    """Return the compensation for all clusters of keys that are not kept; `values` are their mean values."""
    weights = keys.sizes.log()[..., None, :].masked_fill(kept, -torch.inf)
    return CentroidCompensation(queries, weights, keys.centroids, values)
