"""Intersection over union of rotated boxes, computed in float64 without a loop over pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pointcloud.boxes.geometry import corners_bev, rotate


def overlaps_bev(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"]) -> Float[Tensor, "n m"]:
    """Return the intersection over union of every pair, seen from above; 0 where a box has no area."""
    areas = (boxes[:, 3].double() * boxes[:, 4].double() for boxes in (a, b))
    return _over_union(_intersections(a.double(), b.double()), *areas).to(a.dtype)


def overlaps_3d(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"]) -> Float[Tensor, "n m"]:
    """Return the intersection over union of every pair as volumes; 0 where a box has none."""
    dtype, a, b = a.dtype, a.double(), b.double()
    top = torch.minimum((a[:, 2] + a[:, 5] / 2)[:, None], b[:, 2] + b[:, 5] / 2)
    bottom = torch.maximum((a[:, 2] - a[:, 5] / 2)[:, None], b[:, 2] - b[:, 5] / 2)
    shared = _intersections(a, b) * (top - bottom).clamp(min=0)
    return _over_union(shared, a[:, 3:6].prod(1), b[:, 3:6].prod(1)).to(dtype)


def _over_union(
    shared: Float[Tensor, "n m"], size_a: Float[Tensor, " n"], size_b: Float[Tensor, " m"]
) -> Float[Tensor, "n m"]:
    # Rounding must neither lead above 1 nor make boxes that touch overlap.
    smaller = torch.minimum(size_a[:, None], size_b)
    shared = torch.minimum(shared, smaller)
    overlapping = shared > 1e-12 * smaller
    return torch.where(overlapping, shared / (size_a[:, None] + size_b - shared).where(overlapping, 1), 0)


def _intersections(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"]) -> Float[Tensor, "n m"]:
    """Return the shared areas; only pairs whose circumscribed circles meet are looked at."""
    distance = (a[:, None, :2] - b[:, :2]).norm(dim=-1)
    reach = (a[:, None, 3:5].norm(dim=-1) + b[:, 3:5].norm(dim=-1)) / 2
    solid = (a[:, None, 3:5] > 0).all(-1) & (b[:, 3:5] > 0).all(-1)
    rows, columns = (solid & (distance < reach)).nonzero(as_tuple=True)
    return a.new_zeros(len(a), len(b)).index_put((rows, columns), _shared_area(a[rows], b[columns]))


def _shared_area(a: Float[Tensor, "pairs 7"], b: Float[Tensor, "pairs 7"]) -> Float[Tensor, " pairs"]:
    """Return the area that each pair shares, by Green's theorem in the frame of `b`, where b is |x| <= X, |y| <= Y.

    It is the integral of clamp(x, -X, X) dy along those parts of the edges of `a` that have |y| <= Y. An edge is cut
    where it meets x = -X and x = X: between the cuts the integrand is linear and the trapezoid rule exact. Unlike the
    clipping of polygons, this has no special cases: shared edges and corners only make parts of length 0.
    """
    offset = rotate(a[:, :2] - b[:, :2], -b[:, 6])
    start = corners_bev(torch.cat([offset, a[:, 2:6], (a[:, 6] - b[:, 6])[:, None]], 1))
    step = start.roll(-1, 1) - start
    half = b[:, None, 3:5] / 2
    cuts = (torch.stack([-half, half]) - start) / step.where(step != 0, 1)
    low, high = cuts.amin(0), cuts.amax(0)  # where along each edge, 0 to 1, it crosses the slabs |x| <= X and |y| <= Y
    first, last = low[..., 1].clamp(0, 1), high[..., 1].clamp(0, 1)
    along = torch.stack([first, low[..., 0].clamp(first, last), high[..., 0].clamp(first, last), last])
    x = (start[..., 0] + along * step[..., 0]).clamp(-half[..., 0], half[..., 0])
    parts = along.diff(dim=0) * (x[1:] + x[:-1]) / 2
    return (parts.sum(0) * step[..., 1]).sum(1)
