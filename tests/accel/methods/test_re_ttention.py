"""Re-ttention: its mask, its corrections, its schedule, and what it does to other methods' masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import accel
from accel.attention.call import AttentionCall, Geometry, LayerMemory
from accel.attention.corrections.residual import CachedResidual, LowRankResidual, keep_residual
from accel.attention.execute import execute
from accel.attention.orders.grid import token_major
from accel.attention.plan import Computed, Dense, Sparse
from accel.methods.adaspa import AdaSpa
from accel.methods.re_ttention import CORRECTIONS, ReTtention, ReTtentionState
from accel.methods.registry import by_name
from accel.methods.xattention import XAttention
from tests.accel.calls import dense, exponentials, in_dtype, make_call, row, visited
from tests.accel.wan_models import generate, pipeline

SPARSE = dict(density=0.3, block=16)
BASES = {"sparse-vdit": dict(block=16), "adaspa": dict(block=16), "xattention": dict(block=16, stride=4)}


# Blocks on grids as small as these hold more than the window.
wider_than_asked = pytest.mark.filterwarnings("ignore:re-ttention's window of density")


def outputs(method: ReTtention, calls: list[AttentionCall], memory: LayerMemory) -> list[Tensor]:
    """Return what each call gives, dense ones in float32."""
    results = []
    for call in calls:
        plan = method.plan(call, memory)
        if isinstance(plan, Sparse):
            results.append(execute(call, plan)[0])
        else:
            results.append(plan.out if isinstance(plan, Computed) else dense(call).float())
    return results


def published_mask(geometry: Geometry, half: int) -> Tensor:
    """Return the mask of pairs: in each frame a window around the query's own place; text on."""
    start = geometry.before
    mask = torch.ones(geometry.tokens, geometry.tokens, dtype=torch.bool)
    for i in range(geometry.video_tokens):
        for j in range(geometry.video_tokens):
            near = abs(i % geometry.frame_tokens - j % geometry.frame_tokens) <= half
            mask[start + i, start + j] = near
    return mask


@wider_than_asked
@pytest.mark.parametrize("text", [(0, 0), (7, 0), (0, 7), (3, 4)])
@pytest.mark.parametrize("block", [16, 32])
def test_mask_is_the_published_one_in_whole_blocks(text: tuple[int, int], block: int) -> None:
    geometry = Geometry(3, 4, 8, *text)
    call = make_call(10, geometry=geometry)
    plan = ReTtention(window=0.2, block=block, correction="none", every=99)._uncorrected(call, ReTtentionState())
    assert isinstance(plan, Sparse)
    order = token_major(geometry)
    pairs = published_mask(geometry, int(0.2 * 32) // 2)[order][:, order]
    padding = -len(order) % block
    blocks = (
        torch.nn.functional.pad(pairs, (0, padding, 0, padding)).unflatten(1, (-1, block)).unflatten(0, (-1, block))
    )
    assert torch.equal(plan.block_map.to_dense()[0, 0], blocks.any(3).any(1))
    assert plan.block_map.density < 1 or (all(text) and block == 32)  # four blocks, of which two hold text


def test_a_window_that_grows_to_blocks_is_said() -> None:
    with pytest.warns(
        UserWarning, match="window of density 0.219 has density 0.4.* in blocks of 16 tokens on a grid of"
    ):
        ReTtention(window=0.2, block=16)._uncorrected(make_call(10), ReTtentionState())


@pytest.mark.parametrize("density", [0.05, 0.3, 0.6, 1.0])
def test_density_sets_the_window(density: float) -> None:
    call = make_call(10, geometry=Geometry(4, 16, 16))
    plan = ReTtention(density=density, block=16)._uncorrected(call, ReTtentionState())
    assert isinstance(plan, Sparse) and plan.density == pytest.approx(density, abs=0.02)


def transcription(calls: list[AttentionCall], mask: Tensor, warm_up: int, every: int, growth: float, kind: str):
    """Return the outputs of the published rule, in float64."""
    ratio = residual = None
    for call in calls:
        weights, value = exponentials(call), call.v.double()
        full = weights / weights.sum(-1, keepdim=True) @ value
        kept = weights * mask
        if call.progress.step < warm_up:
            yield full
        elif call.progress.step % every == 0:
            yield full
            ratio = kept.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
            if kind in ("residual", "none"):
                ratio = torch.ones_like(ratio)
            reshaped = kept / (kept.sum(-1, keepdim=True) / ratio) @ value
            residual = full - reshaped if kind in ("residual", "both") else 0
        else:
            assert ratio is not None
            yield kept / (kept.sum(-1, keepdim=True) / ratio) @ value + residual
            if kind in ("ratio", "both"):
                ratio = ratio + growth


@wider_than_asked
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_follows_the_published_rule(correction: str) -> None:
    method = ReTtention(dense_steps=0.25, window=0.2, block=16, correction=correction)
    calls = [make_call(step, drift=0.02) for step in range(20)]
    memory = LayerMemory()
    actual = outputs(method, calls, memory)
    expected = transcription(calls, visited(memory.state.plan), 5, 5, 0.04, correction)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
    assert memory.state.sparse_steps == 4


def test_kinds_of_steps() -> None:
    memory = LayerMemory()
    plans = [ReTtention(**SPARSE).plan(make_call(step), memory) for step in range(20)]
    kinds = [type(plan) for plan in plans]
    assert kinds == [Dense] * 6 + ([Computed] + [Sparse] * 4) * 2 + [Computed] + [Sparse] * 3
    memory = LayerMemory()
    method = ReTtention(**SPARSE, dense_layers=1)
    assert all(isinstance(method.plan(make_call(step), memory), Dense) for step in range(20)) and memory.state is None


def test_a_refresh_that_a_step_cache_swallowed_is_made_up_for() -> None:
    memory, method = LayerMemory(), ReTtention(**SPARSE, dense_steps=0.0)
    kinds = [type(method.plan(make_call(step), memory)) for step in (0, 1, 4, 6, 8, 10, 11)]
    assert kinds == [Computed, Sparse, Sparse, Computed, Sparse, Sparse, Computed]


def test_ratio_gives_the_exact_part_of_the_kept_keys() -> None:
    method = ReTtention(**SPARSE, dense_steps=0.0, correction="ratio", growth=0.0)
    call = make_call()
    _, out = outputs(method, [call, make_call(1)], memory := LayerMemory())
    weights = exponentials(call)
    part = weights * visited(memory.state.plan) / weights.sum(-1, keepdim=True) @ call.v.double()
    assert (out - part).abs().max() < 1e-5
    assert (out - dense(call)).abs().max() > 0.01


@pytest.mark.parametrize("correction", ["residual", "both"])
def test_residual_restores_the_full_output(correction: str) -> None:
    method = ReTtention(**SPARSE, dense_steps=0.0, correction=correction, growth=0.0)
    _, out = outputs(method, [make_call(0), make_call(1)], LayerMemory())
    assert (out - dense(make_call())).abs().max() < 1e-5


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_full_density_is_dense_attention(correction: str) -> None:
    method = ReTtention(density=1.0, block=16, dense_steps=0.0, correction=correction, growth=0.0)
    calls = [make_call(step, drift=0.1) for step in range(3)]
    for call, out in zip(calls, outputs(method, calls, LayerMemory()), strict=True):
        assert (out - dense(call)).abs().max() < 1e-5


def test_bfloat16_keeps_its_type() -> None:
    call = in_dtype(make_call(), torch.bfloat16)
    method, memory = ReTtention(**SPARSE, dense_steps=0.0, growth=0.0), LayerMemory()
    full, out = outputs(method, [call, replace(call, progress=make_call(1).progress)], memory)
    assert full.dtype == out.dtype == memory.state.residual.residual.dtype == torch.bfloat16
    assert memory.state.ratio.dtype == torch.float32
    assert (out - full).abs().max() <= 0.02 * full.abs().max()


def test_low_rank_residual_is_the_best_of_its_rank() -> None:
    residual = make_call().v
    u, s, v = torch.linalg.svd(residual.double(), full_matrices=False)
    best = u[..., :4] * s[..., None, :4] @ v[..., :4, :]
    state = torch.get_rng_state()
    kept = keep_residual(residual, torch.float32, rank=4)
    assert isinstance(kept, LowRankResidual) and torch.equal(torch.get_rng_state(), state)
    restored = kept(make_call(), torch.zeros_like(residual), residual[..., 0])
    assert (restored - best).abs().max() < 1e-5
    assert isinstance(keep_residual(residual, torch.float32, rank=16), CachedResidual)


@pytest.mark.parametrize(
    ("options", "floats"),
    [
        (dict(correction="ratio"), 2 * 96),
        (dict(correction="residual"), 2 * 96 * 16),
        (dict(correction="both", offload=True), 2 * 96 * 17),
        (dict(correction="both", residual_rank=4), 2 * 96 + 2 * 4 * (96 + 16)),
        (dict(correction="none"), 0),
    ],
)
def test_memory_is_counted(options: dict, floats: int) -> None:
    method, memory = ReTtention(**SPARSE, dense_steps=0.0, **options), LayerMemory()
    method._uncorrected(make_call(), memory.of(ReTtentionState))
    mask = memory.nbytes()
    for step in range(7):
        method.plan(make_call(step), memory)
    assert memory.nbytes() - mask == 4 * floats


def test_branches_and_generations_are_apart() -> None:
    method = ReTtention(**SPARSE, dense_steps=0.0)
    branches = [[make_call(step, seed=seed, drift=0.05) for step in range(8)] for seed in range(2)]
    alone = [outputs(method, calls, LayerMemory()) for calls in branches]
    memories = LayerMemory(), LayerMemory()
    for step in range(8):
        for branch in range(2):
            out = outputs(method, [branches[branch][step]], memories[branch])[0]
            assert torch.equal(out, alone[branch][step])


@pytest.mark.parametrize("base", [None, *BASES])
def test_a_batch_of_two_is_two_single_runs(base: str | None) -> None:
    method = wrapped(base) if base else ReTtention(**SPARSE, dense_steps=0.2)
    calls = [make_call(step, 10, batch=2, drift=0.05) for step in range(10)]
    together = outputs(method, calls, LayerMemory())
    for sample in range(2):
        single = outputs(method, [row(call, sample) for call in calls], LayerMemory())
        for both, one in zip(together, single, strict=True):
            assert torch.allclose(both[sample], one[0], atol=2e-6)


def wrapped(base: str, **options) -> ReTtention:
    """Return a correction of a base method, both with a warm-up of a fifth."""
    inner = by_name(base, density=0.3, dense_steps=0.2, **BASES[base])
    return ReTtention(base=inner, dense_steps=0.2, block=16, **options)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("base", BASES)
def test_corrects_any_methods_mask(base: str, correction: str) -> None:
    method, memory = wrapped(base, correction=correction), LayerMemory()
    assert method.base is not None and not isinstance(method.base, str)
    alone, ratio, residual, masks, grown = LayerMemory(), None, None, [], 0.0
    for step in range(20):
        call = make_call(step, drift=0.08)
        out = outputs(method, [call], memory)[0]
        plan = method.base.plan(call, alone)
        if step < 4:
            assert (out - dense(call)).abs().max() < 1e-5
            continue
        assert isinstance(plan, Sparse)
        weights, mask = exponentials(call), visited(plan)
        masks.append(mask)
        share = (weights * mask).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
        kept = weights * mask / (weights * mask).sum(-1, keepdim=True) @ call.v.double()
        if (step - 4) % 5 == 0:
            ratio = share if correction in ("ratio", "both") else torch.ones_like(share)
            residual = dense(call) - ratio * kept if correction in ("residual", "both") else 0 * kept
            grown, expected = 0.0, dense(call)
        else:
            expected = torch.where(ratio > 1 - 1e-5, 1.0, ratio + grown) * kept + residual
            grown += 0.04 if correction in ("ratio", "both") else 0
        assert (out - expected).abs().max() < 1e-5 * call.v.abs().max()
    dynamic = any(not torch.equal(masks[i], masks[i + 1]) for i in range(1, 4))  # between two refreshes
    assert dynamic == (base == "xattention")


def test_the_bases_memory_is_nested() -> None:
    method, memory = wrapped("adaspa"), LayerMemory()
    for step in range(8):
        method.plan(make_call(step), memory)
    inner = memory.state.base
    assert inner.state.plan is not None and memory.state.plan is None
    assert memory.nbytes() == inner.nbytes() + 4 * 2 * 96 * 17


def test_a_bases_name_takes_density_and_warm_up() -> None:
    method = by_name("re-ttention", base="xattention", density=0.25, dense_steps=0.4, dense_layers=1)
    base = XAttention(density=0.25, dense_steps=0.4, dense_layers=1)
    assert method == ReTtention(base=base, dense_steps=0.4, dense_layers=1)
    assert by_name("re-ttention", base="adaspa", dense_steps=0.1) == ReTtention(
        base=AdaSpa(dense_steps=0.1), dense_steps=0.1
    )
    assert by_name("re-ttention", base="adaspa").base == AdaSpa(dense_steps=0.3)
    assert method.without_dense_steps() == ReTtention(
        base=replace(base, dense_steps=0.0), dense_steps=0, dense_layers=1
    )


class Halving:
    """A method that makes up for what it drops: all of it."""

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Sparse:
        """Return half of the keys, and a correction to the full output."""
        plan = ReTtention(density=0.5, block=16)._uncorrected(call, ReTtentionState())
        assert isinstance(plan, Sparse)
        return replace(plan, correction=lambda call, out, lse: dense(call).float() + 1)


def test_a_base_that_corrects_itself_gets_no_ratio() -> None:
    method, memory = ReTtention(base=Halving(), dense_steps=0.0, block=16), LayerMemory()
    _, out = outputs(method, [make_call(0), make_call(1)], memory)
    assert memory.state.ratio is None
    assert (out - dense(make_call())).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(density=0.0), "density must be above 0"),
        (dict(window=1.5), "window must lie between 0 and 1"),
        (dict(every=0), "every must be 1 or more"),
        (dict(correction="all"), "unknown correction 'all'; accepted: both, ratio, residual, none"),
        (dict(residual_rank=0), "residual_rank must be 1 or more"),
        (dict(base="magic"), "base is 'magic'; give a method object, or by_name"),
        (dict(base=AdaSpa(), density=0.3), "density goes with a base's name only"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReTtention(**options)


@wider_than_asked
@pytest.mark.parametrize("base", [None, "xattention"])
def test_generations_with_it_are_alike(base: str | None) -> None:
    pipe = pipeline("wan-2.1")
    method = by_name("re-ttention", dense_steps=0.2, every=2, block=16, base=base)
    with accel.enabled(pipe, method) as handle:
        first = generate(pipe)
        assert {record.kind for record in handle.stats()} == {"dense", "refresh", "sparse"}
        assert torch.equal(generate(pipe), first) and handle.memory_bytes() == 0
