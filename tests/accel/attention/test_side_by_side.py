"""Centroids whose neighbours are alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accel.attention.orders.side_by_side import neighbours, side_by_side


def step(points: Tensor) -> Tensor:
    """How far each point is from the next, on the mean of each head."""
    return points.diff(dim=2).norm(dim=-1).mean(-1)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 100])
def test_every_point_is_there_once(count: int) -> None:
    order = neighbours(torch.randn(2, 3, count, 8))
    assert torch.equal(order.sort(-1).values, torch.arange(count).expand(2, 3, -1))


def test_points_on_a_line_come_in_turn() -> None:
    places = torch.randperm(50).float()
    line = places[:, None] * torch.randn(1, 16)
    found = side_by_side(line[None, None])[0, 0]
    steps = (found.diff(dim=0).norm(dim=-1) / line.norm(dim=-1).max() * 49).round()
    assert (steps == 1).all()


def test_neighbours_are_alike() -> None:
    torch.manual_seed(0)
    groups = torch.randn(1, 4, 16, 32).repeat_interleave(16, 2) + 0.1 * torch.randn(1, 4, 256, 32)
    mixed = groups[:, :, torch.randperm(256)]
    found = side_by_side(mixed)
    assert (step(found) < 0.25 * step(mixed)).all()
    # 16 groups lie side by side: hardly more borders than there must be.
    assert ((found.diff(dim=2).norm(dim=-1) > 3).sum(-1) < 32).all()


def test_equal_points_are_kept() -> None:
    points = torch.ones(1, 2, 12, 4)
    assert torch.equal(side_by_side(points), points)
    assert side_by_side(points * torch.nan).isnan().all()


def test_a_batch_equals_single_runs() -> None:
    points = torch.randn(3, 2, 40, 16)
    alone = torch.cat([side_by_side(sample[None]) for sample in points])
    torch.testing.assert_close(side_by_side(points), alone)
