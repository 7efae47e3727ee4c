"""An order of centroids in which neighbours are alike.

Whoever visits a cluster then often visits its neighbours too, and kernels read them in one go: a tile of keys may cross
the border between two clusters that are both visited, and not that between a visited one and another.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

POWER_STEPS = 4  # towards the direction in which a group differs most: a cut only has to be near it


def side_by_side(centroids: Float[Tensor, "b h k d"]) -> Float[Tensor, "b h k d"]:
    """Return centroids so that neighbours are alike: halves of halves, each cut across where it differs most.

    After principal direction divisive partitioning (Boley 1998), with halves of one size.
    """
    return centroids.gather(2, neighbours(centroids)[..., None].expand_as(centroids))


def neighbours(points: Float[Tensor, "b h k d"]) -> Int64[Tensor, "b h k"]:
    """Return the order of points in which each half, quarter and so on holds what lies on one side of a plane."""
    count = points.shape[2]
    levels = max(0, (count - 1).bit_length())
    # Copies of the last point, numbered on behind it, fill the groups up.
    order = torch.arange(2**levels, device=points.device).expand(*points.shape[:2], -1)
    for level in range(levels):
        groups = order.unflatten(-1, (2**level, -1))
        members = points.gather(2, order.clamp(max=count - 1)[..., None].expand(-1, -1, -1, points.shape[3]))
        members = members.unflatten(2, (2**level, -1))
        order = groups.gather(-1, _sides(members).argsort(dim=-1, stable=True)).flatten(-2)
    places = order.argsort(-1)
    return places[..., :count].argsort(-1)


def _sides(members: Float[Tensor, "b h g m d"]) -> Float[Tensor, "b h g m"]:
    """Return where members stand along the direction in which their group differs most, from one neighbour to the next.

    The direction of a group whose members are all the same is any.
    """
    means = members.mean(3, keepdim=True)
    members = members - means
    direction = members[..., :1, :] - members[..., -1:, :] + 1e-6
    for _ in range(POWER_STEPS):
        direction = (members @ direction.mT).mT @ members
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-20)
    onward = torch.cat([means[:, :, 1:], means[:, :, -1:]], 2) - torch.cat([means[:, :, :1], means[:, :, :-1]], 2)
    turn = torch.where((direction * onward).sum(-1, keepdim=True) < 0, -1, 1)
    return (members @ (direction * turn).mT).squeeze(-1)
