"""The C++ operators that pack masks and read orders agree with what torch does where they are not loaded."""

from __future__ import annotations

import pytest
import torch

from sparse_kernels import BlockMap, _extension, kmeans
from sparse_kernels._checks import check_permutes
from sparse_kernels.block_map import uniform_offsets
from sparse_kernels.centroids.api import _are_in_order


@pytest.fixture(autouse=True)
def loaded() -> None:
    assert _extension.load() is None and _extension.at_hand(torch.zeros(1))


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "at_hand", lambda x: False)


def packed(mask: torch.Tensor, longest: int | None) -> BlockMap:
    queries, keys = mask.shape[2:]
    return BlockMap.from_dense(mask, uniform_offsets(queries, 1), uniform_offsets(keys, 1), longest=longest)


@pytest.mark.parametrize("longest", [None, 0, 41, 10**6])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 40), (1, 2, 500, 400), (2, 1, 0, 5), (1, 1, 3, 0)])
def test_masks_are_packed_alike(shape: tuple[int, ...], longest: int | None, request: pytest.FixtureRequest) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.2
    if longest == 0:
        mask &= False
    if longest == 41:
        mask[..., 41:] = False
    ours = packed(mask, longest), packed(mask.transpose(0, 1), longest)
    request.getfixturevalue("without_kernels")
    for map, given in zip(ours, (mask, mask.transpose(0, 1)), strict=True):
        theirs = packed(given, longest)
        assert map.indices.is_contiguous() and torch.equal(map.indices, theirs.indices)
        assert torch.equal(map.counts, theirs.counts) and torch.equal(map.to_dense(), given)


def spoiled(order: torch.Tensor, place: tuple[int, ...], row: int) -> torch.Tensor:
    order = order.clone()
    order[place] = row
    return order


@pytest.mark.parametrize("fixture", [None, "without_kernels"])
@pytest.mark.parametrize("rows", [5, 70_000])
def test_orders_that_miss_a_row_are_refused(rows: int, fixture: str | None, request: pytest.FixtureRequest) -> None:
    if fixture:
        request.getfixturevalue(fixture)
    order = torch.stack([torch.randperm(rows) for _ in range(6)]).view(2, 3, rows)
    check_permutes("order", order)
    check_permutes("order", order.transpose(0, 1))
    last = int(order[1, 2, 3])
    for row in (-1, rows, 2**40, -(2**63), int(order[1, 2, 4])):
        assert row != last
        with pytest.raises(ValueError, match=f"order must hold every row 0 to {rows - 1} once"):
            check_permutes("order", spoiled(order, (1, 2, 3), row))


@pytest.mark.parametrize("fixture", [None, "without_kernels"])
def test_orders_that_mix_clusters_are_noticed(fixture: str | None, request: pytest.FixtureRequest) -> None:
    x = torch.randn(2, 3, 400, 8, generator=torch.Generator().manual_seed(0))
    clusters = kmeans(x, x[:, :, :9], iterations=2)
    if fixture:
        request.getfixturevalue(fixture)
    assert _are_in_order(clusters)
    first, second = (int(clusters.order[1, 2, place]) for place in (0, 399))
    clusters.order[1, 2, 0], clusters.order[1, 2, 399] = second, first
    assert not _are_in_order(clusters)


def test_opcheck() -> None:
    order = torch.randperm(6)[None]
    labels, offsets = torch.zeros(1, 6, dtype=torch.int32), torch.tensor([[0, 6]], dtype=torch.int32)
    operators = torch.ops.sparse_kernels
    torch.library.opcheck(operators.pack_mask_cpu.default, (torch.ones(1, 2, 3, 4, dtype=torch.bool), 3))
    torch.library.opcheck(operators.permutes_cpu.default, (order,))
    torch.library.opcheck(operators.orders_labels_cpu.default, (labels, order, offsets))


def test_nothing_is_built_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        raise AssertionError("nobody asked for the kernels")

    monkeypatch.setattr(_extension, "load", build)
    assert packed(torch.ones(1, 1, 2, 3, dtype=torch.bool), None).counts.tolist() == [[[3, 3]]]
    check_permutes("order", torch.arange(4)[None, None])
