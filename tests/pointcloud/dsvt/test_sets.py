"""The partition into sets against the published formula, written with loops and floating point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointcloud.dsvt import NUSCENES_PILLAR, WAYMO_PILLAR, WAYMO_VOXEL
from pointcloud.dsvt.sets import Sets, partition
from pointcloud.dsvt.windows import split_windows
from tests.pointcloud.dsvt.voxel_scenes import random_voxels

CASES = [
    pytest.param(config.shapes[number], *windows, stage.set_size, id=f"{name}-{number}-{parity}")
    for name, config in (("waymo-pillar", WAYMO_PILLAR), ("waymo-voxel", WAYMO_VOXEL), ("nuscenes", NUSCENES_PILLAR))
    for number, stage in enumerate(config.stages)
    for parity, windows in zip(("even", "odd"), stage.configurations, strict=True)
]
cases = pytest.mark.parametrize("shape,window,shift,set_size", CASES)


def voxels_in_a_corner(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return voxels so dense that windows hold several sets, in the last corner of the grid."""
    side = 40 if shape[2] == 1 else 30
    voxels = random_voxels((side, side, shape[2]), 1500, seed=seed)
    voxels[:, 2:] += torch.tensor([shape[1] - side, shape[0] - side], dtype=torch.int32)
    return voxels


def make_sets(voxels: Tensor, shape: tuple, window: tuple, shift: tuple, set_size: int) -> Sets:
    return partition(split_windows(voxels, shape, window, shift), set_size)


def published(voxels: Tensor, window: tuple, shift: tuple, set_size: int) -> tuple[list[list[list[int]]], list[int]]:
    """Return the slots of all sets of both orders, and the number of voxels of each window."""
    members: dict[tuple, list[tuple[int, int, int, int]]] = {}
    for row, (batch, *zyx) in enumerate(voxels.tolist()):
        moved = [place + step for place, step in zip(reversed(zyx), shift, strict=True)]
        home = batch, *(place // size for place, size in zip(moved, window, strict=True))
        inside = [place % size for place, size in zip(moved, window, strict=True)]
        members.setdefault(home, []).append((*inside, row))
    orders = []
    for key in (lambda v: (v[1], v[0], v[2]), lambda v: (v[0], v[1], v[2])):
        sets = []
        for home in sorted(members):
            ranked = sorted(members[home], key=key)
            count, total = len(ranked), math.ceil(len(ranked) / set_size)
            for number in range(total):
                ranks = [math.floor(float(number * set_size + k) * count / (total * set_size)) for k in range(set_size)]
                sets.append([ranked[rank][3] for rank in ranks])
        orders.append(sets)
    return orders, [len(members[home]) for home in sorted(members)]


@cases
def test_sets_equal_the_published_formula(shape: tuple, window: tuple, shift: tuple, set_size: int) -> None:
    voxels = voxels_in_a_corner(shape)
    expected, counts = published(voxels, window, shift, set_size)
    sets = make_sets(voxels, shape, window, shift, set_size)
    padded, repeats = sets.padded()
    assert padded.tolist() == expected
    assert sets.windows.diff().tolist() == counts and max(counts) > set_size
    for slots, repeated, order in zip(padded, repeats, sets.order, strict=True):
        runs = [order[a:b].tolist() for a, b in zip(sets.offsets[:-1], sets.offsets[1:], strict=True)]
        assert [row[~mask].tolist() for row, mask in zip(slots, repeated, strict=True)] == runs
        assert sorted(sum(runs, [])) == list(range(len(voxels)))


@cases
def test_layouts_hold_the_same_sets(shape: tuple, window: tuple, shift: tuple, set_size: int) -> None:
    voxels = voxels_in_a_corner(shape)
    sets = make_sets(voxels, shape, window, shift, set_size)
    for order, (slots, present, places) in zip(sets.order, sets.layouts(), strict=True):
        assert torch.equal(slots[present], order) and present.any(0).all()
        assert torch.equal(slots.flatten()[places], torch.arange(len(voxels)))
        assert present.flatten()[places].all()


@pytest.mark.parametrize("set_size", (1, 7, 36, 90))
def test_sets_of_one_window_are_of_nearly_one_size(set_size: int) -> None:
    for count in range(1, 200):
        places = torch.arange(count)
        voxels = torch.stack([torch.zeros_like(places), places // 144, places // 12 % 12, places % 12], 1)
        sets = make_sets(voxels, (12, 12, 2), (12, 12, 2), (0, 0, 0), set_size)
        lengths = sets.offsets.diff()
        assert len(lengths) == math.ceil(count / set_size) and count > (len(lengths) - 1) * set_size
        assert 0 <= int(lengths.max() - lengths.min()) <= 1 and int(lengths.max()) <= set_size


@cases
def test_the_order_of_voxels_does_not_matter(shape: tuple, window: tuple, shift: tuple, set_size: int) -> None:
    voxels = voxels_in_a_corner(shape)
    mixed = voxels[torch.randperm(len(voxels), generator=torch.Generator().manual_seed(3))]
    one, other = (make_sets(rows, shape, window, shift, set_size) for rows in (voxels, mixed))
    assert torch.equal(voxels[one.padded()[0]], mixed[other.padded()[0]])
    assert torch.equal(one.offsets, other.offsets)


def test_windows_have_room_for_the_shift_and_none_along_a_spanned_axis() -> None:
    shape, size = (13, 12, 4), (6, 6, 4)
    voxels = torch.cartesian_prod(torch.arange(2), *(torch.arange(extent) for extent in reversed(shape)))
    windows = split_windows(voxels, shape, size, (5, 3, 2))
    per_sample = 4 * 3 * 2
    assert int(windows.index.max()) < 2 * per_sample
    assert torch.equal(windows.index // per_sample, voxels[:, 0])
    assert torch.equal(windows.inside[:, 2], voxels[:, 1])
    assert torch.equal(windows.inside[:, 0], (voxels[:, 3] + 5) % 6)
