"""Voxels against loops over points, and against spconv's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointcloud.voxels import VoxelGrid, voxelise, voxelise_capped

GRID = VoxelGrid((-2.0, -1.5, -1.0), (2.0, 1.5, 1.4), (0.5, 0.3, 0.4))


def draw(count: int = 400, samples: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points x y z intensity, some outside of the grid, and their samples in any order."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 4, generator=generator) - 0.5) * torch.tensor([4.4, 3.3, 2.9, 1.0])
    return points, torch.randint(samples, (count,), generator=generator)


def places(points: Tensor, batch: Tensor) -> dict[tuple[int, ...], list[int]]:
    """Return the rows of the points in each voxel (b x y z)."""
    voxels: dict[tuple[int, ...], list[int]] = {}
    for row, (point, sample) in enumerate(zip(points, batch.tolist(), strict=True)):
        parts = zip(point[:3], GRID.lower, GRID.size, strict=True)
        place = [math.floor(((value - low) / size).item()) for value, low, size in parts]
        if all(0 <= index < count for index, count in zip(place, GRID.shape, strict=True)):
            voxels.setdefault((sample, *place), []).append(row)
    return voxels


def test_dynamic_voxels_equal_a_loop() -> None:
    points, batch = draw()
    out = voxelise(points[:, :3], batch, GRID, 3)
    expected = places(points, batch)
    assert 100 < len(out.kept) < len(points) and GRID.shape == (8, 10, 6)
    assert out.coordinates.dtype == torch.int32 and out.kept.tolist() == sorted(sum(expected.values(), []))
    rows = out.coordinates[:, [0, 3, 2, 1]].tolist()
    assert [tuple(row) for row in rows] == sorted(expected)
    assert out.counts.tolist() == [len(expected[key]) for key in sorted(expected)]
    for voxel, row in zip(out.point_voxel.tolist(), out.kept.tolist(), strict=True):
        assert row in expected[tuple(rows[voxel])]


def test_the_order_of_points_does_not_matter() -> None:
    points, batch = draw()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))
    one, two = (voxelise(points[rows, :3], batch[rows], GRID, 3) for rows in (torch.arange(len(points)), order))
    assert torch.equal(one.coordinates, two.coordinates) and torch.equal(one.counts, two.counts)
    back = torch.full((len(points),), -1).index_put((order[two.kept],), two.point_voxel)
    assert torch.equal(back[one.kept], one.point_voxel)


def test_edges_belong_to_the_upper_voxel_and_the_last_to_none() -> None:
    grid = VoxelGrid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    below = math.nextafter(2.0, 0.0)
    xs = torch.tensor([0.0, 1.0, 2.0, -1e-7, 1e30, -torch.inf, torch.inf, below - 1e-6])
    out = voxelise(torch.stack([xs, xs.new_zeros(8), xs.new_zeros(8)], 1), torch.zeros(8).long(), grid, 1)
    assert out.kept.tolist() == [0, 1, 7] and out.coordinates[:, 3].tolist() == [0, 1]
    # In float32, 2 * 74.88 / 0.32 rounds to 468: a point just inside may get an index that is no voxel's.
    waymo = VoxelGrid((-74.88, -74.88, -2.0), (74.88, 74.88, 4.0), (0.32, 0.32, 6.0))
    edge = torch.tensor([74.88]).nextafter(torch.zeros(1)).expand(3) * torch.tensor([1.0, 1.0, 0.0])
    kept = voxelise(edge[None], torch.zeros(1).long(), waymo, 1)
    assert waymo.shape == (468, 468, 1) and (kept.coordinates < 468).all()


def test_no_points_and_none_inside_give_no_voxels() -> None:
    for xyz in (torch.zeros(0, 3), torch.full((2, 3), 9.0)):
        out = voxelise(xyz, torch.zeros(len(xyz)).long(), GRID, 1)
        assert out.coordinates.shape == (0, 4) and len(out.kept) == len(out.counts) == 0
        capped = voxelise_capped(xyz, torch.zeros(len(xyz)).long(), GRID, 1, 4, 5)
        assert capped.values.shape == (0, 4, 3) and capped.coordinates.shape == (0, 4)


def test_keys_of_a_huge_grid_do_not_overflow() -> None:
    grid = VoxelGrid((0.0, 0.0, 0.0), (8e3, 8e3, 8e3), (2.0, 2.0, 2.0))  # 4000 ** 3 voxels a sample
    xyz = torch.tensor([[7999.0, 7999.0, 7999.0], [1.0, 3.0, 5.0]])
    out = voxelise(xyz, torch.tensor([99, 99]), grid, 100)
    assert out.coordinates.tolist() == [[99, 2, 1, 0], [99, 3999, 3999, 3999]]


def test_capped_voxels_equal_a_loop() -> None:
    points, batch = draw()
    out = voxelise_capped(points, batch, GRID, 3, 2, 40)
    expected: list[tuple[tuple[int, ...], list[int]]] = []
    for sample in range(3):  # a dict keeps the order in which voxels were first met
        expected += [item for item in places(points, batch).items() if item[0][0] == sample][:40]
    assert len(out.coordinates) == len(expected) == 120 and out.counts.max() == 2
    for row, (place, rows) in enumerate(expected):
        count = min(2, len(rows))
        assert tuple(out.coordinates[row, [0, 3, 2, 1]].tolist()) == place and out.counts[row] == count
        assert torch.equal(out.values[row, :count], points[rows[:count]]) and not out.values[row, count:].any()


@pytest.mark.parametrize(("points_per_voxel", "most_voxels"), [(1, 1000), (3, 40), (20, 1000)])
def test_capped_voxels_equal_those_of_spconv(points_per_voxel: int, most_voxels: int) -> None:
    pytest.importorskip("spconv.pytorch")
    from spconv.pytorch.utils import PointToVoxel

    points, _ = draw(1000)
    theirs = PointToVoxel([*GRID.size], [*GRID.lower, *GRID.upper], 4, most_voxels, points_per_voxel)
    values, places, counts = theirs(points)
    ours = voxelise_capped(points, torch.zeros(1000).long(), GRID, 1, points_per_voxel, most_voxels)
    assert torch.equal(ours.values, values) and torch.equal(ours.coordinates[:, 1:], places)
    assert torch.equal(ours.counts, counts.long()) and not ours.coordinates[:, 0].any()


@pytest.mark.parametrize(
    ("upper", "size", "message"),
    [
        ((1.0, 1.0, 1.0), (0.3, 0.5, 0.5), "x holds 3.333 voxels from 0.0 to 1.0, not a whole number"),
        ((1.0, 1.0, 1.0), (0.5, 0.0, 0.5), "the voxel size along y must be above 0, got 0.0"),
        ((1.0, 1.0, -1.0), (0.5, 0.5, 0.5), "z holds -2.000 voxels from 0.0 to -1.0"),
        ((1.0, 1e-9, 1.0), (0.5, 0.5, 0.5), "y holds 0.000 voxels"),
    ],
)
def test_grids_that_do_not_fit_are_refused(
    upper: tuple[float, float, float], size: tuple[float, float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VoxelGrid((0.0, 0.0, 0.0), upper, size)


@pytest.mark.usefixtures("unchecked")
def test_bad_points_are_refused() -> None:
    points, batch = draw()
    points[5, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 400 points are NaN; remove them"):
        voxelise(points[:, :3], batch, GRID, 3)
    with pytest.raises(ValueError, match=r"batch must be in \[0, 2\), the number of samples; got 0 to 2"):
        voxelise(points[:5, :3], torch.tensor([0, 0, 1, 1, 2]), GRID, 2)
    with pytest.raises(ValueError, match=r"xyz must be \(points 3\), batch \(points\); got \(400, 4\) and \(400,\)"):
        voxelise(points, batch, GRID, 3)
    with pytest.raises(ValueError, match="at least 1, got 0 and 5"):
        voxelise_capped(points, batch, GRID, 3, 0, 5)
