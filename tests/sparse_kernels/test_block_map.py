import pytest
import torch

from sparse_kernels import BlockMap
from sparse_kernels.block_map import uniform_offsets

OFFSETS = torch.tensor([0, 3, 3, 7], dtype=torch.int32)


def test_dense_round_trip() -> None:
    mask = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    block_map = BlockMap.from_dense(mask, OFFSETS, uniform_offsets(10, 3))
    assert torch.equal(block_map.to_dense(), mask)
    assert torch.equal(block_map.counts, mask.sum(-1, dtype=torch.int32))


def test_density_counts_pairs_of_unequal_blocks() -> None:
    mask = torch.tensor([[1, 0], [1, 1], [0, 1]], dtype=torch.bool)[None, None]
    block_map = BlockMap.from_dense(mask, OFFSETS, torch.tensor([0, 4, 10], dtype=torch.int32))
    # rows 0-2 see 4 keys, the empty block nothing, rows 3-6 see 6 keys
    assert block_map.density == pytest.approx((3 * 4 + 4 * 6) / 70)
    assert block_map.to_mask().sum() == 3 * 4 + 4 * 6


def test_entries_past_the_count_may_hold_anything() -> None:
    counts = torch.tensor([[[1, 0]]], dtype=torch.int32)
    indices = torch.tensor([[[[2, 99], [-7, 99]]]], dtype=torch.int32)
    offsets = uniform_offsets(4, 2)[None, None]
    block_map = BlockMap(counts, indices, offsets, uniform_offsets(6, 2)[None, None])
    assert block_map.to_dense().tolist() == [[[[False, False, True], [False, False, False]]]]


def test_offsets_may_differ_from_head_to_head() -> None:
    q_offsets = torch.tensor([[[0, 2, 6], [0, 5, 6]]], dtype=torch.int32)
    block_map = BlockMap.from_dense(torch.eye(2, dtype=torch.bool)[None, None], q_offsets, q_offsets)
    expected = [2 * 2 + 4 * 4, 5 * 5 + 1]
    assert block_map.pairs().flatten().tolist() == expected
    assert block_map.to_mask().sum((-1, -2)).flatten().tolist() == expected


@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_types_are_refused() -> None:
    good = BlockMap.uniform(torch.ones(1, 1, 2, 2, dtype=torch.bool), 2, 2, 4, 4)
    with pytest.raises(ValueError, match="counts must be an int32 tensor"):
        BlockMap(good.counts.long(), good.indices, good.q_offsets, good.kv_offsets)
    with pytest.raises(ValueError, match="agree on the number of query blocks"):
        BlockMap(good.counts, good.indices, good.q_offsets[..., :-1], good.kv_offsets)
    with pytest.raises(ValueError, match="2 key blocks"):
        BlockMap.uniform(torch.ones(1, 1, 2, 2, dtype=torch.bool), 2, 2, 4, 6)


def test_flex_needs_equal_blocks() -> None:
    block_map = BlockMap.from_dense(torch.ones(1, 1, 3, 3, dtype=torch.bool), OFFSETS, OFFSETS)
    with pytest.raises(ValueError, match="blocks of one size"):
        block_map.to_flex()


def test_draw_shows_the_diagonal() -> None:
    block_map = BlockMap.uniform(torch.eye(2, dtype=torch.bool)[None, None], 4, 4, 8, 8)
    assert block_map.draw() == "█ \n █"
    wide = BlockMap.uniform(torch.eye(64, dtype=torch.bool)[None, None], 4, 4, 256, 256)
    assert len(wide.draw().splitlines()) == 32
