"""Summaries that answer for blocks which are not visited: every backend and instruction set against float64."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor

from sparse_kernels import BlockMap, Summaries, block_sparse_attention, merge_centroids
from sparse_kernels.block_map import block_of_position
from sparse_kernels.block_sparse_attention import cpu, reference
from tests.sparse_kernels.block_sparse_attention.test_attention import INSTRUCTIONS, NARROW, skip_unless_available
from tests.sparse_kernels.cases import Case, make_case
from tests.sparse_kernels.centroids.test_centroids import SCALE
from tests.sparse_kernels.centroids.test_centroids import make_case as clustered_case

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_summaries(case: Case, heads: tuple[int, int] = (2, 4), seed: int = 0) -> Summaries:
    """Return summaries of 0 to 99 keys each; random, since a mean would hide an error of its own block."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*heads, case.block_map.kv_offsets.shape[-1] - 1)
    keys, values = torch.randn(2, *shape, case.q.shape[3], generator=generator)
    return Summaries(keys, values, torch.randint(0, 100, shape, generator=generator).log())


def uniform_case(dtype: torch.dtype, keep: float, blocks: int = 70, batch: int = 2, heads: int = 4) -> Case:
    """Return a case of many equal blocks: their summaries fill several panels."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, batch, heads, 4 * blocks, 64, generator=generator).to(dtype)
    mask = torch.rand(1, heads, -(-4 * blocks // 100), blocks, generator=generator) < keep
    return Case(q, k, v, BlockMap.uniform(mask, 100, 4, 4 * blocks, 4 * blocks), None, None)


def brute_force(
    case: Case, summaries: Summaries, dtype: torch.dtype = torch.float64, visited_only: bool = False
) -> tuple[Tensor, Tensor]:
    """Return output and LSE by a softmax over all keys and all summaries."""
    batch, heads, rows, head_dim = case.q.shape
    group = heads // case.k.shape[1]
    q, k, v = (x.to(dtype) for x in (case.q, case.k, case.v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    visits = case.block_map.to_dense().expand(batch, heads, -1, -1)
    block = block_of_position(case.block_map.q_offsets, rows).expand(batch, heads, -1)
    pairs = case.block_map.to_mask().expand(batch, heads, -1, -1)
    if (
        case.q_order is not None and case.kv_order is not None
    ):  # the map counts positions: bring it to the callers' rows
        inverse, columns = (order.expand(batch, heads, -1).argsort(-1) for order in (case.q_order, case.kv_order))
        pairs = pairs.gather(2, inverse[..., None].expand(pairs.shape)).gather(
            3, columns[:, :, None].expand(pairs.shape)
        )
        block = block.gather(2, inverse)
    unvisited = ~visits.gather(2, block[..., None].expand(*block.shape, visits.shape[-1]))
    keys, values, weights = (x.to(dtype).expand(batch, heads, *x.shape[2:]) for x in vars(summaries).values())
    weights = torch.where(unvisited, weights[:, :, None], -torch.inf)
    visited = (q @ k.mT * head_dim**-0.5).masked_fill(~pairs, -torch.inf)
    scores = torch.cat([visited, q @ keys.mT * head_dim**-0.5 + weights], -1)
    out = scores.softmax(-1).nan_to_num(0) @ torch.cat([v, values], 2)
    return out, (visited if visited_only else scores).logsumexp(-1)


def assert_close(case: Case, summaries: Summaries, out: Tensor, lse: Tensor, dtype: torch.dtype) -> None:
    """Compare with float64; the budget is what plain arithmetic in `dtype` makes wrong."""
    exact, exact_lse = brute_force(case, summaries)
    plain = brute_force(case, summaries, dtype)[0].double()
    unit = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (out.double() - exact).norm() <= 1.5 * (plain - exact).norm() + unit
    assert torch.equal(lse.isfinite(), exact_lse.isfinite())
    empty = ~exact_lse.isfinite()
    assert (out[empty] == 0).all() and (lse[empty] == -torch.inf).all()
    error = (lse[~empty].double() - exact_lse[~empty]).abs()
    assert error.max() < (3e-2 if dtype != torch.float32 else 5e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("orders", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_variable_blocks(dtype: torch.dtype, orders: bool, backend: str) -> None:
    case = make_case(1, dtype=dtype, orders=orders)
    for heads in ((2, 4), (1, 4), (1, 1)):
        summaries = random_summaries(case, heads)
        out, lse = block_sparse_attention(
            case.q, case.k, case.v, case.block_map, q_order=case.q_order, kv_order=case.kv_order, summaries=summaries,
            return_lse=True, backend=backend,
        )  # fmt: skip
        assert_close(case, summaries, out, lse, dtype)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_every_instruction_set(instructions: str, dtype: torch.dtype, keep: float) -> None:
    skip_unless_available(instructions)
    arithmetic = torch.bfloat16 if instructions in NARROW else dtype
    for case in (uniform_case(dtype, keep), make_case(2, head_dim=80, dtype=dtype)):
        summaries = random_summaries(case)
        scale = case.q.shape[3] ** -0.5
        arguments = (case.q, case.k, case.v, case.block_map, case.q_order, case.kv_order, scale, instructions)
        out, lse = cpu.forward(*arguments, summaries=summaries)
        assert_close(case, summaries, out, lse, arithmetic)
        same, visited = cpu.forward(*arguments, summaries=summaries, lse_of_visited=True)
        assert torch.equal(out, same)
        plain = cpu.forward(*arguments)[1]
        assert torch.equal(visited, plain)


def test_lse_of_the_visited_keys() -> None:
    case = make_case(3)
    summaries = random_summaries(case)
    options = dict(q_order=case.q_order, kv_order=case.kv_order, summaries=summaries)
    expected = brute_force(case, summaries, visited_only=True)[1]
    for backend in ("reference", "cpu"):
        lse = block_sparse_attention(
            case.q, case.k, case.v, case.block_map, **options, return_lse="visited", backend=backend
        )[1]
        finite = expected.isfinite()
        assert torch.equal(lse.isfinite(), finite)
        assert (lse[finite] - expected[finite]).abs().max() < 5e-6


def test_silent_summaries_change_nothing() -> None:
    case = uniform_case(torch.float32, 0.3)
    shape = (1, 1, case.block_map.kv_offsets.shape[-1] - 1)
    keys, values = torch.randn(2, *shape, 64)
    silent = Summaries(keys, values, torch.full(shape, -torch.inf))
    for backend in ("reference", "cpu"):
        results = [
            block_sparse_attention(
                case.q, case.k, case.v, case.block_map, summaries=summaries, return_lse=True, backend=backend
            )
            for summaries in (silent, None)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_summaries_of_single_keys_give_dense_attention() -> None:
    case = uniform_case(torch.float32, 0.4)
    ends = torch.arange(281, dtype=torch.int32)
    mask = torch.rand(1, 4, 280, 280, generator=torch.Generator().manual_seed(2)) < 0.4
    summaries = Summaries(case.k, case.v, torch.zeros(case.k.shape[:3]))
    out = block_sparse_attention(case.q, case.k, case.v, BlockMap.from_dense(mask, ends, ends), summaries=summaries)
    dense = torch.nn.functional.scaled_dot_product_attention(case.q, case.k, case.v)
    assert (out - dense).abs().max() < 2e-6


def test_one_pass_equals_a_second_pass_over_centroids() -> None:
    case = clustered_case()
    kept = torch.rand(case.weights().shape, generator=torch.Generator().manual_seed(3)) < 0.5
    block_map = BlockMap.from_dense(kept, case.queries.offsets, case.keys.offsets)
    counts = case.keys.sizes.log()
    options = dict(q_order=case.queries.order, kv_order=case.keys.order, scale=SCALE)
    out, lse = block_sparse_attention(case.q, case.k, case.v, block_map, **options, return_lse=True)
    weights = torch.where(kept, -torch.inf, counts[:, :, None])
    merged = merge_centroids(case.q, out, lse, case.queries, weights, case.keys.centroids, case.values, scale=SCALE)
    summaries = Summaries(case.keys.centroids, case.values, counts)
    once = block_sparse_attention(case.q, case.k, case.v, block_map, **options, summaries=summaries)
    assert (once - merged).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_large_and_tiny_logits(scale: float) -> None:
    case = uniform_case(torch.float32, 0.3)
    case = dataclasses.replace(case, q=case.q * scale)
    summaries = random_summaries(case)
    out = block_sparse_attention(case.q, case.k, case.v, case.block_map, summaries=summaries)
    exact, plain = (brute_force(case, summaries, dtype)[0].double() for dtype in (torch.float64, torch.float32))
    assert (out - exact).norm() <= 4 * (plain - exact).norm() + 1e-5


def test_a_query_that_is_no_number_stays_alone() -> None:
    case = uniform_case(torch.float32, 0.3)
    case.q[0, 0, 3] = torch.nan
    out = block_sparse_attention(case.q, case.k, case.v, case.block_map, summaries=random_summaries(case))
    assert out[0, 0, 3].isnan().all() and out.isnan().sum() == 64


def test_threads_do_not_change_the_bits() -> None:
    case, before = make_case(5, q_length=400, kv_length=500), torch.get_num_threads()
    arguments = (case.q, case.k, case.v, case.block_map)
    options = dict(q_order=case.q_order, kv_order=case.kv_order, summaries=random_summaries(case))
    expected = block_sparse_attention(*arguments, **options)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(block_sparse_attention(*arguments, **options), expected) for _ in range(30))
    finally:
        torch.set_num_threads(before)


def test_gradients_reach_the_summaries() -> None:
    case = make_case(4, batch=1, heads=2, kv_heads=2, q_length=20, kv_length=30, head_dim=16)
    summaries = random_summaries(case, (1, 2))
    weights = summaries.weights.clamp(min=0).requires_grad_()
    summaries = Summaries(summaries.keys.requires_grad_(), summaries.values.requires_grad_(), weights)
    block_sparse_attention(case.q, case.k, case.v, case.block_map, summaries=summaries).square().sum().backward()
    exact = Summaries(*(x.detach().double().requires_grad_() for x in vars(summaries).values()))
    brute_force(dataclasses.replace(case, q_order=None, kv_order=None), exact)[0].square().sum().backward()
    for mine, theirs in zip(vars(summaries).values(), vars(exact).values(), strict=True):
        assert mine.grad is not None and (mine.grad - theirs.grad).abs().max() < 1e-4
    with pytest.raises(ValueError, match="backend cpu has no backward pass"):
        block_sparse_attention(case.q, case.k, case.v, case.block_map, summaries=summaries, backend="cpu")


def test_summaries_of_the_same_numbers_are_equal() -> None:
    summaries = random_summaries(make_case(0))
    again = copy.deepcopy(summaries)
    assert again == summaries and hash(again) == hash(summaries) and summaries != "summaries"
    for name, other in (("keys", -summaries.keys), ("weights", summaries.weights.double())):
        assert dataclasses.replace(summaries, **{name: other}) != summaries


def test_opcheck() -> None:
    case = make_case(6, q_length=20, kv_length=30)
    fields = (case.block_map.counts, case.block_map.indices, case.block_map.q_offsets, case.block_map.kv_offsets)
    arguments = (case.q, case.k, case.v, *fields, case.q_order, case.kv_order, 0.125, "", None)
    skip_unless_available("")
    op = torch.ops.sparse_kernels.block_sparse_attention_cpu.default
    torch.library.opcheck(op, (*arguments, *random_summaries(case).of_heads(), True))


BAD = {
    "no summaries": (lambda s: 3, {}, "summaries must be Summaries or None, got int"),
    "too few blocks": (
        lambda s: Summaries(*(x[:, :, 1:] for x in vars(s).values())),
        {},
        "6 key blocks in 64 ch",
    ),
    "too few channels": (lambda s: Summaries(s.keys[..., 1:], s.values[..., 1:], s.weights), {}, "got 6 in 63"),
    "too few heads": (
        lambda s: Summaries(*(x[:, :3] for x in vars(s).values())),
        {},
        "summaries.keys must start",
    ),
    "one shape": (lambda s: Summaries(s.keys, s.values[..., 1:], s.weights), {}, "a key, a value and a weight"),
    "weights of integers": (lambda s: Summaries(s.keys, s.values, s.weights.long()), {}, "summaries.weights must be a"),
    "weights of NaN": (
        lambda s: Summaries(s.keys, s.values, s.weights * math.nan),
        {},
        "weights must be finite",
    ),
    "weights of inf": (lambda s: Summaries(s.keys, s.values, s.weights * 0 + math.inf), {}, "got NaN or inf"),
    "a precision": (lambda s: s, {"precision": "int8"}, "summaries are not rounded: leave precision 'int8' out"),
    "flex": (lambda s: s, {"backend": "flex"}, "backend flex has no summaries"),
    "an unknown LSE": (lambda s: s, {"return_lse": "kept"}, "return_lse must be False, True or 'visited', got 'kept'"),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    case = make_case(0)
    change, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(
            case.q, case.k, case.v, case.block_map, summaries=change(random_summaries(case)), **options
        )


def test_the_operator_refuses_what_does_not_fit() -> None:
    case = make_case(0, orders=False)
    skip_unless_available("")
    summaries = random_summaries(case)
    arguments = (case.q, case.k, case.v, case.block_map, None, None, 1.0)
    few = Summaries(*(x[:, :, 1:] for x in vars(summaries).values()))
    with pytest.raises(ValueError, match="summaries must be contiguous float32"):
        cpu.forward(*arguments, summaries=few)
    assert reference.forward(*arguments, summaries=summaries)[0].shape == case.q.shape
