from dataclasses import replace

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


def test_lists_are_as_long_as_is_said() -> None:
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)[None, None]
    offsets = uniform_offsets(10, 5), uniform_offsets(10, 2)
    whole, short = BlockMap.from_dense(mask, *offsets), BlockMap.from_dense(mask, *offsets, longest=3)
    assert short == whole and short.indices.shape[-1] == 3 and torch.equal(short.to_dense(), mask)
    assert BlockMap.from_dense(mask, *offsets, longest=9).indices.shape[-1] == 5
    with pytest.raises(ValueError, match="the mask has a row with 3 blocks, longest is 2"):
        BlockMap.from_dense(mask, *offsets, longest=2)
    nothing = BlockMap.from_dense(mask & False, *offsets, longest=0)
    assert nothing.indices.shape[-1] == 1 and not nothing.counts.any()


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


def test_a_block_may_be_longer_than_any_sequence() -> None:
    assert uniform_offsets(5, 2**40).tolist() == [0, 5]


@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_types_are_refused() -> None:
    good = BlockMap.uniform(torch.ones(1, 1, 2, 2, dtype=torch.bool), 2, 2, 4, 4)
    with pytest.raises(ValueError, match="counts must be an int32 tensor"):
        BlockMap(good.counts.long(), good.indices, good.q_offsets, good.kv_offsets)
    with pytest.raises(ValueError, match="agree on the number of query blocks"):
        BlockMap(good.counts, good.indices, good.q_offsets[..., :-1], good.kv_offsets)
    with pytest.raises(ValueError, match="2 key blocks"):
        BlockMap.uniform(torch.ones(1, 1, 2, 2, dtype=torch.bool), 2, 2, 4, 6)


BAD_MAPS = {
    "block of 0": (
        lambda m, o: BlockMap.uniform(m, 0, 2, 4, 4),
        "1 token or more and sequences 0 to 2.31 - 1, got 0 and 4",
    ),
    "block below 0": (lambda m, o: BlockMap.uniform(m, 2, -3, 4, 4), "1 token or more .* got -3 and 4"),
    "length below 0": (lambda m, o: BlockMap.uniform(m, 2, 2, -4, 4), "sequences 0 to 2.31 - 1, got 2 and -4"),
    "length that int32 cannot hold": (
        lambda m, o: BlockMap.uniform(m, 2**40, 2, 2**41, 4),
        "sequences 0 to 2.31 - 1, got 1099511627776 and 2199023255552",
    ),
    "more blocks than memory": (
        lambda m, o: BlockMap.uniform(m, 1, 2, 2**31 - 1, 4),
        "the mask has 2 query blocks, 2147483647 tokens in blocks of 1 are 2147483647",
    ),
    "float mask": (
        lambda m, o: BlockMap.uniform(m.float(), 2, 2, 4, 4),
        "bool tensor .* got torch.float32 .* threshold",
    ),
    "flat mask": (
        lambda m, o: BlockMap.uniform(m[0, 0], 2, 2, 4, 4),
        "query_blocks key_blocks., got torch.bool .2, 2.",
    ),
    "no mask": (lambda m, o: BlockMap.from_dense(None, o, o), "the mask must be a bool tensor .* got NoneType"),
    "list": (
        lambda m, o: BlockMap.from_dense(m, [0, 2, 4], o),
        "q_offsets must be int32 or int64 .* got list: give where",
    ),
    "float offsets": (
        lambda m, o: BlockMap.from_dense(m, o, o.float()),
        "kv_offsets must be .* got torch.float32 .3,.",
    ),
    "no offsets": (
        lambda m, o: BlockMap(
            torch.zeros(1, 1, 2).int(), torch.zeros(1, 1, 2, 2).int(), o[None, None], o[None, None, :0]
        ),
        "kv_offsets must hold at least the 0",
    ),
    "heads": (
        lambda m, o: BlockMap.from_dense(m.repeat(1, 2, 1, 1), o.repeat(1, 3, 1), o),
        "agree on heads, .* got .2, 2, 3",
    ),
    "no tensor": (lambda m, o: BlockMap(None, m.int(), o, o), "counts must be an int32 tensor .* got NoneType"),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", BAD_MAPS)
def test_what_makes_no_map_is_named(name: str) -> None:
    make, message = BAD_MAPS[name]
    with pytest.raises(ValueError, match=message):
        make(torch.ones(1, 1, 2, 2, dtype=torch.bool), torch.tensor([0, 2, 4], dtype=torch.int32))


def test_the_size_of_key_blocks_is_known_where_they_are_equal() -> None:
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    assert BlockMap.uniform(mask, 2, 2, 4, 6).key_block == 2
    given = BlockMap.from_dense(mask, uniform_offsets(4, 2), torch.tensor([0, 1, 3, 6]).int())
    assert given.key_block is None and replace(given, counts=given.counts).key_block is None
    with pytest.raises(ValueError, match="key_block must be 1 key or more, got 0"):
        replace(given, key_block=0)


def test_maps_of_the_same_blocks_are_equal() -> None:
    mask = torch.tensor([[[[1, 1, 0], [0, 1, 1]]]], dtype=torch.bool)
    block_map = BlockMap.uniform(mask, 2, 2, 4, 6)
    turned = BlockMap(block_map.counts, block_map.indices[..., [1, 0, 2]], block_map.q_offsets, block_map.kv_offsets)
    assert block_map == turned and hash(block_map) == hash(turned) and block_map != "a map"
    assert block_map != BlockMap.uniform(~mask, 2, 2, 4, 6) and block_map != BlockMap.uniform(mask, 2, 2, 4, 5)
    assert block_map != BlockMap.uniform(mask[..., :2], 2, 2, 4, 4)


def test_an_empty_map_has_no_density() -> None:
    for shape in ((1, 1, 0, 0), (0, 1, 0, 0)):
        assert BlockMap.uniform(torch.zeros(shape, dtype=torch.bool), 16, 16, 0, 0).density == 0.0
    assert BlockMap.uniform(torch.zeros(1, 1, 0, 0, dtype=torch.bool), 16, 16, 0, 0).draw() == ""


def test_flex_needs_equal_blocks() -> None:
    block_map = BlockMap.from_dense(torch.ones(1, 1, 3, 3, dtype=torch.bool), OFFSETS, OFFSETS)
    nothing = BlockMap.uniform(torch.zeros(1, 1, 0, 0, dtype=torch.bool), 16, 16, 0, 0)
    for refused in (block_map, nothing):
        with pytest.raises(ValueError, match="blocks of one size"):
            refused.to_flex()


def test_draw_shows_the_diagonal() -> None:
    block_map = BlockMap.uniform(torch.eye(2, dtype=torch.bool)[None, None], 4, 4, 8, 8)
    assert block_map.draw() == "█ \n █"
    wide = BlockMap.uniform(torch.eye(64, dtype=torch.bool)[None, None], 4, 4, 256, 256)
    assert len(wide.draw().splitlines()) == 32
    assert block_map.draw(width=1) == "▒"
    with pytest.raises(ValueError, match="width must be 1 letter or more, got 0"):
        wide.draw(width=0)
