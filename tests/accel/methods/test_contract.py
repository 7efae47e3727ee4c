"""What every method owes, whatever its paper: one test each, over all of the registry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import accel
from accel.attention.call import AttentionCall, Geometry, LayerMemory
from accel.attention.execute import Attended, attend
from accel.attention.plan import Sparse
from accel.methods.method import Scheduled
from accel.methods.registry import METHODS, SPARSE_METHODS, by_name
from accel.naming import fields_of
from tests.accel.calls import dense, in_dtype, make_call, row, rows_around, visited
from tests.accel.wan_models import STEPS, generate, pipeline

# Where a method has such an option, it fits grids of some hundred tokens, and lets random heads be sparse.
FITTING = {"block": 16, "stride": 4, "query_clusters": 6, "key_clusters": 12, "tolerance": 9.0}
GRIDS = [Geometry(3, 4, 8), Geometry(3, 4, 8, before=13), Geometry(3, 4, 8, after=13), Geometry(3, 4, 8, 5, 8)]

every_method = pytest.mark.parametrize("name", METHODS)


def small(name: str, density: float = 0.4, **options: object) -> Scheduled:
    """Return the method at sizes of a small grid, at a density if it is one that leaves something out."""
    fitting = {key: value for key, value in FITTING.items() if key in fields_of(METHODS[name])}
    chosen = {"density": density} if name in SPARSE_METHODS else {}
    return by_name(name, **{"dense_steps": 0.2, **chosen, **fitting, **options})


def run(method: Scheduled, calls: list[AttentionCall], memory: LayerMemory | None = None) -> list[Attended]:
    """Return what each call of one layer gives."""
    memory = LayerMemory() if memory is None else memory
    return [attend(call, method.plan(call, memory)) for call in calls]


def steps(*numbers: int, **options: object) -> list[AttentionCall]:
    """Return calls of a loop of ten steps, each a little different from the one before."""
    return [make_call(step, 10, drift=0.03, **options) for step in numbers or range(10)]


@every_method
@pytest.mark.parametrize("geometry", GRIDS, ids=rows_around)
def test_full_density_is_dense(name: str, geometry: Geometry) -> None:
    calls = steps(geometry=geometry)
    for call, attended in zip(calls, run(small(name, 1.0, dense_steps=0.0), calls), strict=True):
        assert (attended.out - dense(call)).abs().max() < 1e-5 and attended.density == 1


@every_method
def test_the_models_scale_is_obeyed(name: str) -> None:
    call = replace(make_call(5, 10), scale=0.05)
    call = replace(call, dense=lambda: dense(call).float())
    (attended,) = run(small(name, 1.0, dense_steps=0.0), [call])
    assert (attended.out - dense(call)).abs().max() < 1e-5
    assert (attended.out - dense(make_call(5, 10))).abs().max() > 1e-2


@every_method
@pytest.mark.parametrize("geometry", GRIDS[1:], ids=rows_around)
def test_text_is_exact(name: str, geometry: Geometry) -> None:
    calls, text = steps(geometry=geometry), geometry.kept()
    for call, attended in zip(calls, run(small(name), calls), strict=True):
        assert (attended.out - dense(call))[:, :, text].abs().max() < 1e-5


@every_method
def test_a_sparse_call_is_the_attention_of_its_mask(name: str) -> None:
    method, memory = small(name), LayerMemory()
    for call in steps():
        plan = method.plan(call, memory)
        if isinstance(plan, Sparse):
            mask = visited(plan)
            assert plan.density == pytest.approx(mask.double().mean().item(), abs=1e-6)
            bare = attend(call, replace(plan, correction=None, summaries=None))
            assert (bare.out - dense(call, mask).nan_to_num(0)).abs().max() < 1e-5
            assert bare.lse is not None and bare.density == pytest.approx(plan.density)


@every_method
def test_warm_up(name: str) -> None:
    kinds = [attended.kind for attended in run(small(name, dense_steps=0.3), steps())]
    assert (
        {"dense"} <= set(kinds[:3]) <= {"dense", "refresh"} and "dense" not in kinds[3:] and kinds.count("sparse") > 3
    )
    layers = run(small(name, dense_layers=1, dense_steps=0.0), steps())
    assert {attended.kind for attended in layers} == {"dense"}
    assert "dense" not in {attended.kind for attended in run(small(name).without_dense_steps(), steps())}


@every_method
@pytest.mark.parametrize("numbers", [(0, 1, 2, 5, 9), (4, 7, 8), (9,)])
def test_a_cache_may_swallow_any_call(name: str, numbers: tuple[int, ...]) -> None:
    results = run(small(name), steps(*numbers))
    for call, attended in zip(steps(*numbers), results, strict=True):
        assert attended.out.isfinite().all() and attended.out.shape == call.q.shape
        assert attended.kind == "sparse" or (attended.out - dense(call)).abs().max() < 1e-5


@every_method
def test_a_batch_equals_single_runs(name: str) -> None:
    calls = steps(batch=2)
    together = run(small(name), calls)
    for sample in range(2):
        for both, one in zip(together, run(small(name), [row(call, sample) for call in calls]), strict=True):
            assert (both.out[sample] - one.out[0]).abs().max() < 1e-5


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    calls = [in_dtype(call, dtype) for call in steps()]
    for call, attended in zip(calls, run(small(name, 1.0, dense_steps=0.0), calls), strict=True):
        exact = dense(call)
        assert attended.out.dtype == dtype
        assert (attended.out - exact).norm() < 4 * (call.dense() - exact).norm()
    assert all(attended.out.dtype == dtype for attended in run(small(name), calls))


@every_method
def test_memory_is_counted(name: str) -> None:
    memory = LayerMemory()
    run(small(name), steps(0, 1, 2, 3, 4), memory)
    shares = len([x for x in _all_tensors(memory) if x.ndim == 0])  # densities that nobody has read yet
    assert 0 < memory.nbytes() == sum(x.numel() * x.element_size() for x in _all_tensors(memory)) - 8 * shares


def _all_tensors(value: object) -> list[Tensor]:
    """Return every tensor that can be reached, however it is nested."""
    if isinstance(value, Tensor):
        return [value]
    inside = (
        value if isinstance(value, (list, tuple)) else list(vars(value).values()) if hasattr(value, "__dict__") else []
    )
    return [tensor for item in inside for tensor in _all_tensors(item)]


@every_method
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density must be above 0 and at most 1, got 0"),
        ({"density": 1.5}, "density must be above 0 and at most 1, got 1.5"),
        ({"dense_steps": -0.1}, "dense_steps must lie between 0 and 1, got -0.1"),
        ({"dense_layers": -1}, "dense_layers must be 0 or more, got -1"),
        ({"densty": 0.3}, "has no option densty; accepted: density"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_name(name, **options)


@every_method
def test_generations_of_a_real_pipeline(name: str) -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    with accel.enabled(pipe, small(name)) as handle:
        first = generate(pipe)
        records = handle.stats()
        assert len(records) == STEPS * 2 * 2 and {record.branch for record in records} == {"cond", "uncond"}
        assert handle.memory_bytes() == 0 < handle.peak_memory_bytes()
        generate(pipe, height=96)
        assert handle.geometry is not None and handle.geometry.height == 6
        assert torch.equal(generate(pipe), first)
        both = generate(pipe, seeds=(0, 1))
        assert (both[:1] - first).abs().max() < 5e-5 * first.abs().max()
    assert torch.equal(generate(pipe), stock) and (name == "full" or not torch.allclose(first, stock, atol=1e-6))


@every_method
def test_full_density_equals_the_stock_pipeline(name: str) -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    with accel.enabled(pipe, small(name, 1.0, dense_steps=0.0)) as handle:
        assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max()
        assert {record.density for record in handle.stats()} == {1.0}
