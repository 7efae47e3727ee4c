"""Groups and interpolation against loops over single neighbours, and their gradients."""

from __future__ import annotations

import pytest
import torch

from sparse_kernels.points import ball_query, group, k_nearest_neighbors, three_nearest_interpolation
from tests.sparse_kernels.points.clouds import draw, packed


def test_groups_hold_places_relative_to_their_centres_and_features() -> None:
    clouds = draw(24)
    index, _ = ball_query(clouds.points, clouds.offsets, clouds.queries, clouds.query_offsets, 0.7, 5)
    features = torch.randn(len(clouds.points), 4, generator=torch.Generator().manual_seed(0))
    out = group(clouds.points, clouds.queries, index, features)
    axes = clouds.points.shape[1]
    assert out.shape == (*index.shape, axes + 4) and (index < 0).any() and (index >= 0).any()
    for query, rows in enumerate(index.tolist()):
        for slot, row in enumerate(rows):
            there = row >= 0
            expected = clouds.points[row] - clouds.queries[query] if there else torch.zeros(axes)
            assert torch.equal(out[query, slot, :axes], expected)
            assert torch.equal(out[query, slot, axes:], features[row] if there else torch.zeros(4))
    assert torch.equal(group(clouds.points, clouds.queries, index), out[..., :axes])


def test_interpolation_weighs_the_nearest_by_inverse_squared_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    offsets, query_offsets = packed(torch.tensor([30, 2, 0, 1])), packed(torch.tensor([9, 4, 0, 3]))
    points, queries = torch.randn(33, 3, generator=generator), torch.randn(16, 3, generator=generator)
    features = torch.randn(33, 5, generator=generator)
    queries[0], queries[9] = points[7], points[30]
    out = three_nearest_interpolation(features, points, offsets, queries, query_offsets)
    for query in range(16):
        cloud = int(torch.searchsorted(query_offsets, query, right=True)) - 1
        own = slice(int(offsets[cloud]), int(offsets[cloud + 1]))
        squared, order = (points[own].double() - queries[query].double()).square().sum(1).sort()
        weights = 1 / (squared[:3] + 1e-8)
        expected = (features[own].double()[order[:3]] * (weights / weights.sum())[:, None]).sum(0)
        assert (out[query] - expected).abs().max() < 1e-5
    assert (out[0] - features[7]).abs().max() < 1e-5 and (out[9] - features[30]).abs().max() < 1e-5
    assert torch.allclose(out[13:], features[32])


def test_gradients_reach_all_that_has_some() -> None:
    generator = torch.Generator().manual_seed(2)
    points, queries = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (12, 5))
    features = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    offsets, query_offsets = packed(torch.tensor([10, 2])), packed(torch.tensor([3, 2]))
    near = k_nearest_neighbors(points.float(), offsets, queries.float(), query_offsets, 4)
    assert near.counts.tolist() == [4, 4, 4, 2, 2]
    leaves = [x.requires_grad_() for x in (points, queries, features)]
    assert torch.autograd.gradcheck(lambda p, q, f: group(p, q, near.index, f), leaves)
    assert torch.autograd.gradcheck(
        lambda p, q, f: three_nearest_interpolation(f, p, offsets, q, query_offsets), leaves, atol=1e-4
    )


def test_infinity_in_another_cloud_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a compiler or CUDA looks at no numbers, there may be no neighbour at all."""
    monkeypatch.setattr("sparse_kernels.points.gathering.can_be_read", lambda x: False)
    offsets, query_offsets = packed(torch.tensor([3, 1, 0])), packed(torch.tensor([0, 1, 1]))
    points, queries, features = torch.randn(4, 3), torch.randn(2, 3), torch.randn(4, 2)
    features[0] = torch.inf
    leaves = [x.requires_grad_() for x in (features, points, queries)]
    out = three_nearest_interpolation(features, points, offsets, queries, query_offsets)
    assert torch.equal(out[0], features[3]) and (out[1] == 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), leaves))


def test_nothing_at_all() -> None:
    none, offsets = torch.zeros(0, 3), torch.tensor([0, 0])
    index = k_nearest_neighbors(none, offsets, torch.zeros(2, 3), torch.tensor([0, 2]), 3).index
    assert group(none, torch.zeros(2, 3), index, torch.zeros(0, 4)).shape == (2, 3, 7)
    assert group(torch.zeros(5, 3), none, index[:0]).shape == (0, 3, 3)
    assert three_nearest_interpolation(torch.zeros(0, 4), none, offsets, none, offsets).shape == (0, 4)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named() -> None:
    points, offsets, index = torch.zeros(4, 3), torch.tensor([0, 4, 4]), torch.zeros(4, 2, dtype=torch.int64)
    interpolate = three_nearest_interpolation
    for run, message in (
        (lambda: group(points, points[:, :2], index), "points and centers must share their axes"),
        (lambda: group(points, points.double(), index), "points, centers must share one of float32, .*convert"),
        (lambda: group(points, points.to("meta"), index), "centers is on meta, points on cpu"),
        (lambda: group(points, points, index[:3]), "index must be int64 of shape .4, neighbours., .* .3, 2."),
        (lambda: group(points, points, index.int()), "index must be int64 .* got torch.int32"),
        (lambda: group(points, points, index + 4), "index must name rows 0 to 3, or -1 for none; it has 4 to 4"),
        (lambda: group(points, points, index - 2), "it has -2 to -2"),
        (lambda: group(points, points, index, points[:2]), "features must be .4, channels., a row a point"),
        (lambda: interpolate(points[:2], points, offsets, points, offsets), "features must be .4, channels."),
        (
            lambda: interpolate(points, points, offsets, points, torch.tensor([0, 3, 4])),
            "query 3 lies in a cloud without points: leave it out",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run()
