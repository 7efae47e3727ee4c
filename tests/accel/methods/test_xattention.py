"""XAttention: scores, selection, padding, text, schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry, LayerMemory
from accel.attention.execute import execute
from accel.attention.orders.grid import tiles
from accel.attention.plan import Dense, Sparse
from accel.methods.xattention import XAttention
from tests.accel.calls import as_call, dense, make_call, row

SMALL = dict(block=16, stride=4, dense_steps=0.0)


def transcription(q: Tensor, k: Tensor, block: int, stride: int, threshold: float, keep_first: bool) -> Tensor:
    """Return the kept blocks (b h nq nk) of the published rule in float64, keys of padding left out."""
    length = q.shape[2]
    q, k = (torch.nn.functional.pad(x.double(), (0, 0, 0, -length % block)) for x in (q, k))
    keys = torch.cat([k[:, :, phase::stride] for phase in range(stride)], -1)
    queries = torch.cat([q[:, :, phase::stride] for phase in reversed(range(stride))], -1)
    scores = queries @ keys.transpose(-1, -2) / (q.shape[-1] ** 0.5 * stride)
    real = torch.arange(scores.shape[-1]) * stride < length
    weights = scores.masked_fill(~real, -torch.inf).softmax(-1) * real[:, None]
    mass = weights.unflatten(3, (-1, block // stride)).sum(4).unflatten(2, (-1, block // stride)).sum(3)
    kept = torch.zeros_like(mass, dtype=torch.bool)
    for index in torch.cartesian_prod(*map(torch.arange, mass.shape[:3])).tolist():
        line, before = mass[tuple(index)], 0.0
        for block_index in line.argsort(descending=True).tolist():
            kept[(*index, block_index)] = before < threshold * line.sum() or (keep_first and block_index == 0)
            before += float(line[block_index])
    return kept


def mask_of(method: XAttention, call: AttentionCall) -> Tensor:
    """Return the blocks that the method keeps."""
    plan = method.plan(call, LayerMemory())
    assert isinstance(plan, Sparse)
    return plan.block_map.to_dense()


@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("size", [(3, 4, 8), (5, 4, 6)])  # the last block of the second is half full
def test_follows_the_published_rule(size: tuple[int, int, int], stride: int, keep_first: bool) -> None:
    call = make_call(geometry=Geometry(*size), batch=2)
    method = XAttention(block=16, stride=stride, threshold=0.6, dense_steps=0.0, keep_first=keep_first)
    mask = mask_of(method, call)
    assert torch.equal(mask, transcription(call.q, call.k, 16, stride, 0.6, keep_first))
    assert mask.any(-1).all() and not mask.all()
    assert mask[..., 0].all() == keep_first


def test_padding_draws_no_mass() -> None:
    """Keys that all repel the queries: zeros would win over every one of them."""
    call = make_call(geometry=Geometry(1, 5, 20))
    q, k = torch.ones_like(call.q), -torch.ones_like(call.k)
    k[:, :, :32] *= 0.5
    call = as_call(q, k, call.v, call.geometry, call.progress)
    mask = mask_of(XAttention(**SMALL, density=0.3), call)
    assert torch.equal(mask, (torch.arange(7) < 2).expand_as(mask))


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("tile", [None, (2, 2, 2)])
def test_text_is_on(position: str, tile: tuple[int, int, int] | None) -> None:
    geometry = Geometry(4, 4, 8, **{position: 16})
    mask = mask_of(XAttention(**SMALL, density=0.2, tile=tile), make_call(geometry=geometry))
    text = 0 if position == "before" else -1
    assert mask[..., text].all() and mask[..., text, :].all() and not mask.all()


def test_tiles_are_scored_and_run_in_their_order() -> None:
    geometry = Geometry(4, 4, 8)
    call, order = make_call(geometry=geometry), tiles(geometry, (2, 2, 4))
    memory, method = LayerMemory(), XAttention(**SMALL, threshold=0.6, tile=(2, 2, 4))
    plan = method.plan(call, memory)
    assert isinstance(plan, Sparse) and plan.q_order is not None
    assert torch.equal(plan.q_order[0, 0], order)
    expected = transcription(call.q[:, :, order], call.k[:, :, order], 16, 4, 0.6, False)
    assert torch.equal(plan.block_map.to_dense(), expected)
    later = method.plan(make_call(1, geometry=geometry), memory)
    assert isinstance(later, Sparse) and later is not plan and later.q_order is plan.q_order


def test_density_is_a_budget_of_blocks() -> None:
    call = make_call(geometry=Geometry(5, 4, 8))
    mask = mask_of(XAttention(**SMALL, density=0.3), call)
    assert (mask.sum(-1) == 3).all()
    with_first = mask_of(XAttention(**SMALL, density=0.3, keep_first=True), call)
    assert (with_first.sum(-1) == 3).all() and with_first[..., 0].all()


@pytest.mark.parametrize("options", [dict(density=1.0), dict(threshold=1.0)])
def test_all_blocks_are_dense_attention(options: dict) -> None:
    call = make_call(geometry=Geometry(5, 4, 6))
    plan = XAttention(**SMALL, **options).plan(call, LayerMemory())
    assert isinstance(plan, Sparse)
    assert (execute(call, plan)[0] - dense(call)).abs().max() < 5e-6


def test_schedule() -> None:
    method = XAttention(block=16, stride=4, every=3, threshold=0.5)
    memory, plans = LayerMemory(), []
    for step in range(10):
        plans.append(method.plan(make_call(step, 10, seed=step), memory))
    assert [type(plan) for plan in plans] == [Dense] + [Sparse] * 9
    assert [plans[i] is plans[i - 1] for i in range(2, 10)] == [True, True, False] * 2 + [True, True]
    assert memory.nbytes() > 0
    assert isinstance(XAttention(dense_layers=1).plan(make_call(9, 10), LayerMemory()), Dense)


def test_every_step_has_its_own_mask() -> None:
    method, memory = XAttention(**SMALL, threshold=0.5), LayerMemory()
    for step in range(3):
        call = make_call(step, seed=step)
        plan = method.plan(call, memory)
        assert isinstance(plan, Sparse) and torch.equal(plan.block_map.to_dense(), mask_of(method, call))


def test_a_batch_of_two_is_two_single_calls() -> None:
    call, method = make_call(batch=2), XAttention(**SMALL, threshold=0.6)
    mask = mask_of(method, call)
    assert not torch.equal(mask[0], mask[1])
    for sample in range(2):
        assert torch.equal(mask[sample], mask_of(method, row(call, sample))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(density=1.5), "density must be above 0"),
        (dict(stride=7), "stride must divide block 128, got 7"),
        (dict(threshold=0.0), "threshold must be above 0"),
        (dict(every=0), "every must be 1 or more"),
        (dict(tile=(0, 8, 8)), "tile must be three numbers of 1 or more"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XAttention(**options)


def test_an_estimate_that_a_cache_swallowed_moves_to_the_next_call() -> None:
    method, memory = XAttention(**SMALL, every=3, threshold=0.5), LayerMemory()
    plans = [method.plan(make_call(step, 10, seed=step), memory) for step in (0, 1, 4, 5, 7)]
    assert [plans[i] is plans[i - 1] for i in range(1, 5)] == [True, False, True, False]
