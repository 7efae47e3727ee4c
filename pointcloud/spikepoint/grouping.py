"""Groups of neighbours with coordinates that are rates: folded at zero, beside the group's minimum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from sparse_kernels.points import farthest_point_sampling, k_nearest_neighbors


class Groups(NamedTuple):
    """What the two branches of a SpikePoint read: each neighbour's six values, and each group's centre."""

    local: Float32[Tensor, "batch groups neighbors 6"]
    centers: Float32[Tensor, "batch groups 3"]


@torch.no_grad()
def group_clouds(clouds: Float32[Tensor, "batch points 3"], groups: int, neighbors: int) -> Groups:
    """Return groups of the nearest `neighbors` of centres that lie far apart (SpikePoint, section 3.2).

    Centres are found by farthest point sampling from each cloud's first point. A neighbour's values are the absolute
    distances to the centre along x, y and t, over the standard deviation of the group about its centre on all axes
    together, then the least x, y and t of the group, which make up for the mean that folding has moved. Where all of a
    group lies in one place the distances are 0. ValueError on clouds with fewer points than groups or neighbours.
    """
    batch, points, _ = clouds.shape
    if points < max(groups, neighbors, 1):
        raise ValueError(
            f"clouds of {points} points cannot make {groups} groups of {neighbors} neighbours; sample_cloud draws "
            "as many points as are asked for"
        )
    packed, offsets = _packed(clouds)
    centers = packed[farthest_point_sampling(packed, offsets, groups).flatten()]
    _, center_offsets = _packed(centers.view(batch, groups, 3))
    near = packed[k_nearest_neighbors(packed, offsets, centers, center_offsets, neighbors).index]
    distances = (near - centers[:, None]).abs()
    deviation = (distances.square().sum((1, 2), keepdim=True) / max(distances[0].numel() - 1, 1)).sqrt()
    rates = torch.where(deviation > 0, distances / deviation, 0)
    least = near.amin(1, keepdim=True).expand_as(near)
    local = torch.cat([rates, least], 2).view(batch, groups, neighbors, 6)
    return Groups(local, centers.view(batch, groups, 3))


def _packed(clouds: Tensor) -> tuple[Tensor, Tensor]:
    batch, points, _ = clouds.shape
    return clouds.flatten(0, 1).contiguous(), torch.arange(batch + 1, device=clouds.device) * points
