"""What a preset chooses by steps and tokens, from how many tokens on, and how it says so."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import accel
from accel.attention.call import Geometry
from accel.attention.heads import HeadShare
from accel.attention.schedule import dense_step_count
from accel.caching.table import BlockTable, Table
from accel.methods import floor, preset
from accel.methods.full import Full
from accel.methods.preset import Preset, settings
from accel.methods.registry import from_text, name_of
from accel.methods.svg_ear import SVGEAR
from accel.workbench.cases import Case, cases, method_of
from tests.accel.calls import make_call
from tests.accel.wan_models import STEPS, generate, pipeline

SHAPE = floor.Shape(1, 16, torch.float32, torch.device("cpu"), 1)
MADE_UP = Geometry(8, 16, 16)


@pytest.mark.parametrize(("steps", "dense"), [(1, 0), (2, 1), (4, 1), (8, 1), (12, 2), (50, 5)])
def test_few_steps_have_one_dense_step_at_most(steps: int, dense: int) -> None:
    method = settings(steps, 8448)
    assert dense_step_count(method.dense_steps, steps) == dense
    assert (method == SVGEAR()) == (steps >= preset.FEW_STEPS)


@pytest.mark.parametrize(("computed", "dense", "iterations"), [(4, 0, 5), (9, 0, 5), (10, 3, 20), (None, 3, 20)])
def test_where_a_cache_computes_few_steps_none_is_dense(computed: int | None, dense: int, iterations: int) -> None:
    method = settings(30, 8448, computed)
    assert dense_step_count(method.dense_steps, 30) == dense and method.first_iterations == iterations


def test_small_grids_have_more_clusters_and_pairs() -> None:
    method = settings(4, 1280)
    assert (method.density, method.query_clusters, method.key_clusters) == (0.4, 20, 40)
    assert settings(4, preset.SMALL_GRID).density == 0.25


@pytest.mark.parametrize(
    ("gain", "expected", "timed"),
    [
        (lambda tokens: 2.0, 2048, 1),
        (lambda tokens: tokens / 4096, 4096 * 2**0.1, 3),  # 1 at 4,096 tokens, 2 at 8,192
        (lambda tokens: 0.7 + 0.1 * math.log2(tokens / 8192), 8192 * 2**4, 3),
        (lambda tokens: 0.5, math.inf, 3),
    ],
)
def test_the_floor_is_where_the_gain_is_reached(
    gain: Callable[[int], float], expected: float, timed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def seconds(method: Full, tokens: int, shape: floor.Shape) -> tuple[float, float, float]:
        seen.append(tokens)
        return gain(tokens), 2.0, 0.5  # of three sparse steps the first one takes as long as two dense ones

    monkeypatch.setattr(floor, "seconds", seconds)
    assert floor.token_floor(lambda tokens: Full(), 3, SHAPE) == pytest.approx(expected)
    assert len(seen) == timed


def test_a_gpu_is_timed_at_lengths_that_keep_it_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "seconds", lambda method, tokens, shape: (tokens / 16384, 1.0, 1.0))
    on_gpu = floor.Shape(1, 16, torch.bfloat16, torch.device("cuda"), 1)
    assert floor.token_floor(lambda tokens: Full(), 3, on_gpu) == pytest.approx(16384 * 2**0.1)


def test_longer_sequences_than_are_wanted_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        floor, "seconds", lambda method, tokens, shape: seen.append(tokens) or (tokens / 2**20, 1.0, 1.0)
    )
    on_gpu = floor.Shape(1, 16, torch.bfloat16, torch.device("cuda"), 1)
    for wanted, timed in ((9000, 2), (4000, 2), (32760, 3), (40000, 4)):
        seen.clear()
        assert floor.token_floor(lambda tokens: Full(), 3, on_gpu, wanted) > wanted and len(seen) == timed


def test_where_most_rows_are_no_video_it_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset, "token_floor", pytest.fail)
    choice = Preset().choose(make_call(0, 4, replace(MADE_UP, after=3000)))
    assert choice.method is None and choice.line.startswith("only 16% of the pairs of tokens are of the picture alone")


def test_where_memory_runs_out_it_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def token_floor(*arguments: object) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(preset, "token_floor", token_floor)
    choice = Preset().choose(make_call(0, 4, MADE_UP))
    assert choice.method is None and "quicker here at no length that could be timed, and these are 2,048" in choice.line


def test_calls_are_timed_once() -> None:
    times = floor.seconds(Full(), 256, SHAPE)
    assert len(times) == 3 and min(times) > 0 and floor.seconds(Full(), 256, SHAPE) is times


def test_the_preset_asks_for_the_floor_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(0, 4, MADE_UP)
    asked: list[tuple[SVGEAR, int, floor.Shape]] = []

    def token_floor(method_for: Callable[[int], SVGEAR], sparse_steps: int, shape: floor.Shape, wanted: int) -> float:
        asked.append((method_for(4096), sparse_steps, shape))
        assert wanted == 2048
        return 2000.0

    monkeypatch.setattr(preset, "token_floor", token_floor)
    choice = Preset().choose(call)
    assert choice.method == settings(4, 2048) and "2,048 tokens in 4 steps is svg-ear:density=0.4:" in choice.line
    ((method, sparse_steps, shape),) = asked
    assert method == settings(4, 4096).without_dense_steps() and sparse_steps == 3
    assert (shape.heads, shape.channels, shape.dtype) == (2, 16, torch.float32)
    # Devices that share the heads must choose alike: the highest floor counts.
    together = replace(call, share=HeadShare(0, lambda own: torch.cat([own, own + 500], 1)))
    choice = Preset().choose(together)
    assert choice.method is None and "from about 2,500 tokens on, and these are 2,048" in choice.line


def test_a_process_with_a_reason_of_its_own_answers_those_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[float] = []

    def gather(own: torch.Tensor) -> torch.Tensor:
        answers.append(float(own.max()))
        return torch.cat([own, torch.zeros_like(own)], 1)  # the other one has no reason

    def token_floor(*arguments: object) -> float:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED\nwhen calling cublasCreate")

    together = replace(make_call(0, 4, MADE_UP), share=HeadShare(0, gather))
    monkeypatch.setattr(preset, "token_floor", token_floor)
    said = [str(Preset().choose(together).line)]
    monkeypatch.setattr(preset, "backend_reasons", lambda device: {"cpu": "no compiler"})
    said.append(str(Preset().choose(together).line))
    said.append(str(Preset().choose(replace(make_call(0, 4), share=HeadShare(0, gather))).line))
    assert answers == [math.inf] * 3
    assert said[0].startswith(
        "sparse attention could not be timed here: RuntimeError: CUBLAS_STATUS_ALLOC_FAILED; name"
    )
    assert "no quick kernel for sparse attention here: no compiler" in said[1] and "are too few" in said[2]


def test_a_process_stays_dense_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset, "token_floor", lambda *arguments: 0.0)
    share = HeadShare(0, lambda own: torch.cat([own, torch.full_like(own, math.inf)], 1))
    choice = Preset().choose(replace(make_call(0, 4, MADE_UP), share=share))
    assert choice.method is None and choice.line.startswith("another process that shares the heads stays dense")


def test_a_warm_up_times_what_the_generation_will_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[SVGEAR, int]] = []

    def token_floor(method_for: Callable[[int], SVGEAR], sparse_steps: int, shape: floor.Shape, wanted: int) -> float:
        asked.append((method_for(4096), sparse_steps))
        return 0.0

    monkeypatch.setattr(preset, "token_floor", token_floor)
    for steps, policy in ((12, None), (50, Table(every=5, warmup=1)), (100, Table(every=10, warmup=1))):
        computed = None if policy is None else policy.computed_steps
        later = Preset(computed).choose(make_call(0, steps, MADE_UP))
        warm = Preset(computed, warms_up_for=steps).choose(make_call(0, 2, MADE_UP))
        assert warm.line == later.line and later.method is not None and warm.method is not None
        assert warm.method == later.method.without_dense_steps() and asked[-1] == asked[-2]
    # Of 50 steps a tenth is dense, of which the cache computes one; of 100 too.
    assert [steps for _, steps in asked[::2]] == [10, 9, 9]


def test_without_a_quick_kernel_or_with_few_tokens_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset, "token_floor", pytest.fail)
    choice = Preset().choose(make_call(0, 4))
    assert choice.method is None and choice.line.startswith("96 tokens are too few for sparse attention")
    monkeypatch.setattr(preset, "backend_reasons", lambda device: {"cpu": "no compiler"})
    choice = Preset().choose(make_call(0, 4, MADE_UP))
    assert choice.method is None and "no quick kernel for sparse attention here: no compiler" in choice.line


def test_a_pipeline_below_the_floor_stays_dense_and_says_so_once() -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    with accel.enabled(pipe) as handle:
        assert handle.chosen is None
        with pytest.warns(UserWarning, match="accel runs dense attention: 80 tokens are too few") as said:
            assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max()
            generate(pipe)
        assert len(said) == 1 and {record.kind for record in handle.stats()} == {"dense"}
        assert "latest generation: 80 tokens are too few" in handle.summary()


def test_a_pipeline_above_the_floor_runs_what_was_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preset, "SIZES", (1,))
    monkeypatch.setattr(preset, "token_floor", lambda *arguments: 0.0)
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, settings(STEPS, 80)):
        expected = generate(pipe)
    with caplog.at_level(logging.INFO, "accel"), accel.enabled(pipe) as handle:
        assert torch.equal(generate(pipe), expected)
        assert {record.kind for record in handle.stats() if record.step} == {"sparse"}
        assert caplog.messages == [handle.chosen] and str(handle.chosen) in handle.summary()


def test_the_preset_hears_how_many_steps_a_cache_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset, "SIZES", (1,))
    asked: list[int] = []
    monkeypatch.setattr(preset, "token_floor", lambda _, sparse_steps, shape, wanted: asked.append(sparse_steps) or 0.0)
    pipe = pipeline("wan-2.1")
    depth = len(pipe.transformer.blocks)
    table = Table(table=BlockTable("", tuple("c" * depth if step in (0, 2) else "r" * depth for step in range(STEPS))))
    with accel.enabled(pipe, cache=table) as handle:
        generate(pipe)
        assert {record.step for record in handle.stats() if record.kind == "sparse"} == {0, 2} and asked == [2]
        assert {record.kind for record in handle.stats()} == {"sparse"}
        assert f"in {STEPS} steps, 2 of them computed, is svg-ear:" in str(handle.chosen)
    with accel.enabled(pipe, cache=Table(every=2, growth=1, warmup=1)) as handle:
        generate(pipe)
        assert f"in {STEPS} steps, 2 of them computed, is svg-ear:" in str(handle.chosen)
    with accel.enabled(pipe, cache="easy") as handle:
        generate(pipe)
        assert handle.chosen is not None and "computed" not in handle.chosen


def test_options_without_a_method_are_obeyed() -> None:
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, density=0.3, dense_steps=0.0) as handle:
        generate(pipe)
        assert handle.chosen is None and {record.kind for record in handle.stats()} == {"sparse"}
    assert from_text("preset:density=0.3") == SVGEAR(density=0.3) and name_of(from_text("preset")) == "preset"
    assert cases(["preset"], [0.2, 0.3], [0.0, 0.2]) == [Case("preset", 1.0, 0.0)]
    assert method_of(Case("preset", 1.0, 0.0), 1.0) == Preset()
