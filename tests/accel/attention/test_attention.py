"""Selection rules, orders, patterns, scores and schedule."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from accel.attention.call import AttentionCall, Geometry, LayerMemory, Progress
from accel.attention.execute import execute, sampled_recall
from accel.attention.masks.band import band
from accel.attention.masks.head_modes import MODES, head_mode_plan, rank_columns
from accel.attention.masks.kept import keep_rest
from accel.attention.masks.multi_diagonal import multi_diagonal_plan
from accel.attention.masks.pattern_table import PatternTable
from accel.attention.masks.selection import select_blocks
from accel.attention.orders.grid import native, tiles, token_major, whole_order
from accel.attention.plan import Computed, Dense, Sparse
from accel.attention.schedule import dense_step_count, phase
from accel.methods.adaspa import AdaSpa
from accel.methods.re_ttention import ReTtention
from accel.methods.registry import by_name
from accel.methods.sparse_vdit import SparseVDiT
from accel.models.records import CallRecord, summarize
from sparse_kernels import block_mass
from sparse_kernels.block_map import uniform_offsets
from tests.accel import calls

GEOMETRY = Geometry(3, 4, 5)


def make_call(step: int = 0, geometry: Geometry = GEOMETRY, heads: int = 4, seed: int = 0) -> AttentionCall:
    return calls.make_call(step, 10, geometry, seed, heads=heads)


# The field's boundary conventions, on scores whose sum is 1: .4 .3 .2 .1
SCORES = torch.tensor([0.2, 0.4, 0.1, 0.3])


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (dict(top_k=2), [1, 3]),
        (dict(top_k=0), [1]),  # at least one
        (dict(top_k=0, at_least=0), []),
        (dict(top_p=0.3), [1]),  # the entry that crosses the share is kept
        (dict(top_p=0.41), [1, 3]),
        (dict(top_p=0.4), [1]),  # reached exactly: the next is not needed
        (dict(top_p=1.0), [0, 1, 2, 3]),
        (dict(top_p=0.0), [1]),
        (dict(threshold=0.3), [1, 3]),  # at the threshold is kept
        (dict(threshold=9.0, at_least=2), [1, 3]),
        (dict(top_k=1, top_p=0.65), [1, 3]),  # the union
        (dict(top_k=torch.tensor([3])), [0, 1, 3]),
    ],
)
def test_selection_rules(rule: dict, kept: list[int]) -> None:
    mask = select_blocks(SCORES, **rule)
    assert mask.nonzero().flatten().tolist() == kept


def test_ties_go_to_the_lower_index() -> None:
    assert select_blocks(torch.ones(2, 5), top_k=2).tolist() == [[True, True, False, False, False]] * 2


def test_selection_needs_a_rule() -> None:
    with pytest.raises(ValueError, match="at least one of top_k, top_p, threshold"):
        select_blocks(SCORES)


def test_token_major_puts_one_pixels_frames_together() -> None:
    order = token_major(GEOMETRY)
    assert order[:6].tolist() == [0, 20, 40, 1, 21, 41]
    assert torch.equal(order.sort().values, native(GEOMETRY))


@pytest.mark.parametrize("position", ["before", "after"])
def test_orders_leave_text_in_place(position: str) -> None:
    geometry = Geometry(3, 4, 5, **{position: 7})
    order = token_major(geometry)
    text = torch.arange(7) if position == "before" else torch.arange(60, 67)
    assert torch.equal(order[:7] if position == "before" else order[-7:], text)
    assert torch.equal(order.sort().values, torch.arange(67))
    assert torch.equal(whole_order(torch.arange(60), geometry), torch.arange(67))


def test_tiles_are_contiguous_and_ragged_at_the_border() -> None:
    order = tiles(GEOMETRY, (2, 3, 2))
    t, y, x = order // 20, order % 20 // 5, order % 5
    number = (t // 2 * 2 + y // 3) * 3 + x // 2
    assert torch.equal(number, number.sort().values) and torch.equal(order.sort().values, native(GEOMETRY))


@pytest.mark.parametrize("tile", [None, (2, 2, 2)])
@pytest.mark.parametrize("position", ["before", "after"])
def test_adaspa_never_cuts_text_off(tile: tuple[int, int, int] | None, position: str) -> None:
    geometry = Geometry(4, 4, 8, **{position: 16})
    method = AdaSpa(density=0.1, dense_steps=0.1, block=16, tile=tile)
    memory = LayerMemory()
    method.plan(make_call(0, geometry=geometry), memory)
    mask = memory.state.plan.block_map.to_dense()
    text = 0 if position == "before" else -1
    assert mask[..., text].all() and mask[..., text, :].all() and not mask.all()


@pytest.mark.parametrize("name", ["svg2", "svg-ear"])
def test_a_density_that_other_rows_use_up_leaves_the_video_a_part(name: str) -> None:
    geometry = Geometry(4, 4, 6, after=160)  # reference pictures: they cost 0.86 of all pairs
    method = by_name(name, density=0.25, dense_steps=0.0, query_clusters=6, key_clusters=24)
    plan = method.plan(make_call(geometry=geometry), LayerMemory())
    assert isinstance(plan, Sparse)
    block_map = plan.block_map
    sizes = block_map.q_offsets.diff()[..., :6, None] * block_map.kv_offsets.diff()[..., None, :24]
    share = (block_map.to_dense()[..., :6, :24] * sizes).sum((-1, -2)) / 96**2
    assert 0.08 < share.mean() < 0.2  # half of the density; one cluster a row is 0.04


@pytest.mark.parametrize("density", [0.05, 0.25, 0.5, 1.0])
def test_band_has_the_density_asked_for(density: float) -> None:
    mask = band(100, density)
    assert mask.diagonal().all() and torch.equal(mask, mask.T)
    assert mask.float().mean().item() == pytest.approx(density, abs=0.015)


def test_text_rows_and_columns_are_always_on() -> None:
    geometry = Geometry(1, 4, 4, after=5)
    offsets = torch.tensor([0, 8, 14, 21])
    mask = keep_rest(torch.zeros(1, 1, 3, 3, dtype=torch.bool), geometry, offsets, offsets)
    assert mask[0, 0].tolist() == [[False, False, True], [False, False, True], [True, True, True]]


def test_dense_step_count_rounds_up() -> None:
    assert [dense_step_count(share, 12) for share in (0, 0.25, 0.2, 1)] == [0, 3, 3, 12]
    assert dense_step_count(0.1, 10) == 1
    assert [phase(make_call(step), 0.2, 0) for step in range(3)] == ["dense", "last dense", "sparse"]
    assert phase(make_call(0), 0.0, 0) == "sparse" and phase(make_call(9), 0.1, 1) == "dense"


@pytest.mark.parametrize("mode", MODES)
def test_each_head_mode_equals_its_brute_force(mode: str) -> None:
    call = make_call()
    columns = rank_columns(call.q, call.k, call.scale, GEOMETRY)
    plan = head_mode_plan([[mode] * 4], columns, GEOMETRY, 0.4, 16, call.q.device)
    out, lse = execute(call, plan)
    block = torch.arange(60) // 16
    place = torch.arange(60).view(3, 20).T.flatten().argsort() // 16  # the token's block in token-major order
    for head in range(4):
        stripe = torch.zeros(60, dtype=torch.bool).index_fill(0, columns[0, head, :32], True)
        mask = {
            "full": torch.ones(60, 60, dtype=torch.bool),
            "skip": torch.zeros(60, 60, dtype=torch.bool),
            "diagonal": band(4, 0.4)[block[:, None], block],
            "multi-diagonal": band(4, 0.4)[place[:, None], place],
            "stripe": stripe.expand(60, 60),
        }[mode]
        scores = (call.q[0, head] @ call.k[0, head].T * call.scale).masked_fill(~mask, -torch.inf)
        expected = scores.softmax(-1).nan_to_num(0) @ call.v[0, head]
        assert torch.allclose(out[0, head], expected, atol=2e-6)


@pytest.mark.parametrize("mode", ["diagonal", "multi-diagonal", "stripe"])
@pytest.mark.parametrize("position", ["nowhere", "before", "after"])
def test_every_pattern_keeps_the_first_frame_and_its_density(mode: str, position: str) -> None:
    geometry = Geometry(9, 4, 8, **({} if position == "nowhere" else {position: 16}))
    call = make_call(geometry=geometry)
    columns = rank_columns(call.q, call.k, call.scale, geometry, first_frame=True)
    plan = head_mode_plan([[mode] * 4], columns, geometry, 0.5, 16, call.q.device, first_frame=True)
    mask = plan.block_map.to_dense().repeat_interleave(16, -1).repeat_interleave(16, -2)
    mask = torch.zeros_like(mask)[..., : geometry.tokens, : geometry.tokens].copy_(mask)
    rows = mask.new_zeros(mask.shape).scatter(2, plan.q_order[..., None].expand(mask.shape), mask)
    pairs = rows.new_zeros(mask.shape).scatter(3, plan.kv_order[..., None, :].expand(mask.shape), rows)
    first = slice(16, 48) if position == "before" else slice(0, 32)
    assert pairs[:, :, first].all() and pairs[..., first].all()
    assert not pairs.all() and pairs.float().mean().item() == pytest.approx(0.5, abs=0.12)


def test_heads_of_all_kinds_share_one_launch() -> None:
    call = make_call(heads=5)
    columns = rank_columns(call.q, call.k, call.scale, GEOMETRY)
    together = execute(call, head_mode_plan([list(MODES)], columns, GEOMETRY, 0.4, 16, call.q.device))[0]
    for head, mode in enumerate(MODES):
        alone = execute(call, head_mode_plan([[mode] * 5], columns, GEOMETRY, 0.4, 16, call.q.device))[0]
        assert torch.equal(together[:, head], alone[:, head])


def test_sampled_recall_is_the_kept_mass() -> None:
    call = make_call()
    plan = head_mode_plan([["full"] * 4], torch.zeros(1, 4, 60, dtype=torch.long), GEOMETRY, 1.0, 16, call.q.device)
    assert sampled_recall(call, execute(call, plan)[1]).item() == pytest.approx(1, abs=1e-5)


def test_adaspa_schedule_and_rule() -> None:
    method = AdaSpa(density=0.5, dense_steps=0.3, block=16, refresh=(0.6,), head_adaptive=False)
    memory = LayerMemory()
    kinds = []
    for step in range(10):
        plan = method.plan(make_call(step, seed=step), memory)
        kinds.append(type(plan))
        if step in (2, 5):
            first = memory.state.plan
        if step == 6:  # the later search uses the LSE of the first and today's q and k
            call = make_call(6, seed=6)
            offsets = uniform_offsets(60, 16)
            mass = block_mass(call.q, call.k, memory.state.lse, offsets, offsets)
            assert torch.equal(plan.block_map.to_dense(), select_blocks(mass, top_k=2))
            assert plan is not first
        if step == 5:
            assert plan is first
    assert kinds == [Dense, Dense, Computed] + [Sparse] * 7
    assert memory.nbytes() > 0


def test_adaspa_moves_density_from_good_to_bad_heads() -> None:
    method = AdaSpa(density=0.2, block=16)
    mass = torch.full((1, 4, 10, 10), 0.01)
    mass[0, 0, :, 0] = mass[0, 2, :, 3] = 5.0  # two heads whose mass sits in one column
    call = make_call(0, Geometry(4, 4, 8), heads=4)
    kept = method._select(call, mass).sum(-1)[0, :, 0].tolist()
    assert kept == [1, 3, 1, 3]
    assert AdaSpa(density=1.0)._select(call, mass).all()


def test_sparse_vdit_picks_the_pattern_that_fits() -> None:
    geometry = Geometry(4, 4, 8)
    call = make_call(0, geometry, heads=3)
    t, pixel = torch.arange(128) // 32, torch.arange(128) % 32
    near = -(torch.arange(128)[:, None] - torch.arange(128)).abs() * 2.0
    same_pixel = -(pixel[:, None] - pixel).abs() * 8.0 - (t[:, None] - t).abs() * 0.01
    column = torch.zeros(128, 128).index_fill(1, torch.tensor([5, 50, 99]), 30.0)
    # Keys are unit vectors, so that queries spell out the score matrix row by row.
    scores = torch.stack([near, same_pixel, column])[None]
    k = torch.eye(128).expand(1, 3, 128, 128)
    v = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    call = calls.as_call(scores * 128**0.5, k, v, geometry, call.progress, layers=1)
    out = (scores.softmax(-1)) @ v
    method = SparseVDiT(density=0.4, block=16)
    assert method.choose_patterns(call, out)[0] == [["diagonal", "multi-diagonal", "stripe"]]
    assert SparseVDiT(density=0.4, block=16, tolerance=0.0).choose_patterns(call, out)[0] == [["full"] * 3]


def test_pattern_table_round_trip(tmp_path) -> None:
    table = PatternTable("tiny", (3, 4, 5), [[["full", "skip", "stripe", "diagonal"]] * 2] * 5)
    table.save(tmp_path / "table.json")
    assert PatternTable.load(tmp_path / "table.json") == table
    plan = SparseVDiT(block=16, table=table).plan(make_call(5), LayerMemory())
    assert isinstance(plan, Sparse) and plan.block_map.counts[0, 1].sum() == 0
    assert not table.fits(make_call(0, geometry=Geometry(3, 4, 6)))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a pattern table"):
        PatternTable.load(tmp_path / "bad.json")
    replace(table, steps_modes=[[["diagnal"]]]).save(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="it has modes diagnal; accepted modes: full, skip"):
        PatternTable.load(tmp_path / "bad.json")
    replace(table, steps_modes=[[["full"], ["full", "skip"]]]).save(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="it has steps or layers of several sizes"):
        PatternTable.load(tmp_path / "bad.json")


def test_a_pattern_table_serves_its_own_step_of_any_number_of_steps() -> None:
    table = PatternTable("", (1, 1, 1), [[[str(step)]] for step in range(50)])
    assert [table.modes(Progress(step, 50, ""), 0) for step in range(50)] == [[str(step)] for step in range(50)]
    assert table.modes(Progress(24, 25, ""), 0) == ["48"]


def test_summary_of_records() -> None:
    shape = (1, 2, 60, 16)
    records = [
        CallRecord(0, 2, 0, "cond", "dense", 1.0, 0.5, None, shape),
        CallRecord(1, 2, 0, "cond", "sparse", 0.2, 0.25, 0.9, shape),
    ]
    facts = summarize(records)
    assert facts["density"] == 0.2 and facts["density_overall"] == 0.6 and facts["recall"] == 0.9
    assert facts["dense_steps"] == 1 and facts["attention_seconds"] == 0.75
    assert summarize([])["density"] is None


def test_a_refresh_that_a_cache_swallowed_moves_to_the_next_call() -> None:
    method, memory = AdaSpa(density=0.5, dense_steps=0.1, block=16, refresh=(0.5,), head_adaptive=False), LayerMemory()
    plans = {step: method.plan(make_call(step, seed=step), memory) for step in (0, 1, 2, 6, 7)}
    assert plans[1] is plans[2] is not plans[6] is plans[7]


def test_sparse_vdit_is_sparse_at_any_density() -> None:
    call = make_call(0, Geometry(4, 4, 8), heads=3)
    names = SparseVDiT(density=0.7, block=16).choose_patterns(call, call.dense())[0]
    assert names != [["full"] * 3], "most of the pairs are there, and hardly anything is missing"


def test_a_table_of_another_size_is_said() -> None:
    table = PatternTable("tiny", (3, 4, 5), [[["full", "skip", "stripe", "diagonal"]] * 2] * 5)
    method, memory = SparseVDiT(block=16, table=table), LayerMemory()
    with pytest.warns(UserWarning, match=r"of tiny, \(3, 4, 5\) tokens, 2 layers and 4 heads, and this generation"):
        method.plan(make_call(5, geometry=Geometry(3, 4, 8)), memory)
    method.plan(make_call(6, geometry=Geometry(3, 4, 8)), memory)


def test_pattern_files_that_are_none(tmp_path) -> None:
    with pytest.raises(ValueError, match="is not a pattern table"):
        PatternTable.load(tmp_path / "missing.json")
    for content in ('{"model": "a", "grid": [1, 1, 1], "steps_modes": [[[[1]]]]}', "[" * 100_000):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match="is not a pattern table"):
            PatternTable.load(tmp_path / "bad.json")


def test_text_is_counted_in_the_density_of_a_band() -> None:
    geometry = Geometry(1, 16, 16, before=64)
    plan = head_mode_plan([["diagonal"]], torch.arange(320)[None, None], geometry, 0.35, 16, torch.device("cpu"))
    assert plan.density < 0.41  # the text alone is 0.36, and the narrowest band is there in any case
    assert select_blocks(torch.tensor([[1.0, 1e-9, 0.0]]), top_p=1.0).all()


def test_a_window_that_text_widens_is_no_wide_block() -> None:
    geometry = Geometry(13, 30, 45, before=226)
    plan = multi_diagonal_plan(geometry, 1 / 32, None, 16, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReTtention(block=16)._warn_of_wide_blocks(plan, geometry)
