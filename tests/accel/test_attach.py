"""Methods attached to real Wan pipelines: same numbers at full density, no state left, nothing else touched."""

from __future__ import annotations

import copy
import gc
import re
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jaxtyping
import pytest
import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
    dispatch_attention_fn,
)
from torch import Tensor, nn

import accel
from accel.attention.call import AttentionCall, Geometry, LayerMemory, Progress
from accel.attention.execute import full_attention
from accel.attention.plan import Dense, Plan
from accel.caching.easy import EasyCache
from accel.methods.method import Scheduled
from accel.methods.registry import by_name
from accel.models import session
from tests.accel.calls import GRID, make_call
from tests.accel.models.loops import Loop
from tests.accel.wan_models import STEPS, embeddings, generate, pipeline, transformer

SPARSE = dict(density=0.3, block=16)
FULL = dict(density=1.0, dense_steps=0.0, block=16)
KINDS = ["wan-2.1", "wan-2.1-i2v", "wan-2.2"]


@pytest.fixture(autouse=True)
def backend_of_all_models() -> Iterator[None]:
    """Give back the backend that diffusers makes that of the whole process where one model is given one."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "options", "kinds"),
    [
        ("full", {}, {"sparse"}),
        ("adaspa", FULL, {"refresh", "sparse"}),
        ("sparse-vdit", FULL | dict(tolerance=9.0), {"refresh", "sparse"}),
    ],
)
def test_full_density_equals_the_stock_pipeline(kind: str, name: str, options: dict[str, Any], kinds: set[str]) -> None:
    pipe = pipeline(kind)
    stock = generate(pipe)
    with accel.enabled(pipe, name, **options) as handle:
        ours = generate(pipe)
        records = handle.stats()
    assert (ours - stock).abs().max() < 2e-5 * stock.abs().max()
    assert {record.kind for record in records} == kinds and all(record.density == 1.0 for record in records)
    assert len(records) == STEPS * 2 * 2  # steps, branches, layers
    assert torch.equal(generate(pipe), stock)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "options"), [("adaspa", SPARSE), ("sparse-vdit", SPARSE | dict(tolerance=9.0))])
def test_second_generation_equals_the_first(kind: str, name: str, options: dict[str, Any]) -> None:
    pipe = pipeline(kind)
    with accel.enabled(pipe, name, **options) as handle:
        first = generate(pipe)
        assert handle.memory_bytes() == 0
        generate(pipe, height=96)
        assert handle.geometry is not None and handle.geometry.height == 6
        assert torch.equal(generate(pipe), first)
    assert not torch.allclose(first, generate(pipe), atol=1e-6)


def test_batched_guidance_works() -> None:
    """Both branches in one call, as CogVideoX-like pipelines and users' own loops do it."""
    model, latents = transformer(0), torch.randn(2, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe = pipeline("wan-2.1")
    pipe.transformer = model
    pipe.scheduler.set_timesteps(STEPS)
    text = torch.cat([embeddings(1), embeddings(2)])

    def loop(rows: slice) -> list[torch.Tensor]:
        return [
            model(latents[rows], t.expand(len(latents[rows])), text[rows], return_dict=False)[0]
            for t in pipe.scheduler.timesteps
        ]

    with torch.no_grad(), accel.enabled(pipe, "adaspa", **SPARSE) as handle:
        batched = loop(slice(0, 2))
        assert {record.branch for record in handle.stats()} == {"call 0"}
        for row in range(2):
            single = loop(slice(row, row + 1))
            for both, one in zip(batched, single, strict=True):
                assert (both[row] - one[0]).abs().max() < 2e-5


def test_branches_do_not_mix() -> None:
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, "adaspa", **SPARSE) as handle:
        generate(pipe)
        assert {record.branch for record in handle.stats()} == {"cond", "uncond"}
        # The conditional branch alone must see what it saw beside the other one.
        densities = [record.density for record in handle.stats() if record.branch == "cond"]
        generate(pipe, guidance=1.0)
        assert [record.density for record in handle.stats()] == pytest.approx(densities, rel=0.2)


@pytest.mark.parametrize("enabled_first", [True, False])
def test_offloading_goes_before_or_after(enabled_first: bool) -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    if not enabled_first:
        pipe.enable_model_cpu_offload(device="cpu")
    with accel.enabled(pipe, "adaspa", **SPARSE) as handle:
        if enabled_first:
            pipe.enable_model_cpu_offload(device="cpu")
        first = generate(pipe)
        assert torch.equal(generate(pipe), first) and {record.kind for record in handle.stats()} > {"sparse"}
    assert torch.equal(generate(pipe), stock)


class Stop(Exception):
    """Raised in the middle of a generation."""


def test_an_exception_leaves_nothing_behind() -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)

    def stop(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise Stop
        return arguments

    with accel.enabled(pipe, "adaspa", **SPARSE):
        clean = generate(pipe)
        with pytest.raises(Stop):
            generate(pipe, callback_on_step_end=stop)
        assert torch.equal(generate(pipe), clean)
    with pytest.raises(Stop), accel.enabled(pipe, "adaspa", **SPARSE) as handle:
        generate(pipe, callback_on_step_end=stop)
    assert handle.memory_bytes() == 0 < handle.peak_memory_bytes()
    assert torch.equal(generate(pipe), stock)


@pytest.mark.parametrize("name", ["adaspa", "sparse-vdit", "svg-ear", "re-ttention"])
@pytest.mark.parametrize("stopped_in", [0, 1])
def test_a_generation_interrupted_early_leaves_nothing_to_the_next(name: str, stopped_in: int) -> None:
    pipe = pipeline("wan-2.1")
    processor = pipe.transformer.blocks[1].attn1

    def stop(module: nn.Module, arguments: tuple) -> None:
        calls.append(1)
        if len(calls) > 2 * stopped_in + 1:
            raise Stop

    with accel.enabled(pipe, name, dense_steps=0.0, density=0.3) as handle:
        clean = generate(pipe)
        calls: list[int] = []
        hook = processor.register_forward_pre_hook(stop)
        with pytest.raises(Stop):
            generate(pipe, seeds=(7,))
        hook.remove()
        assert torch.equal(generate(pipe), clean)
        assert len(handle.stats()) == STEPS * 2 * 2


def test_two_pipelines_on_two_threads_share_a_transformer() -> None:
    pipes = [pipeline("wan-2.1"), pipeline("wan-2.1")]
    pipes[1].transformer = pipes[0].transformer
    with accel.enabled(pipes[0], "adaspa", dense_steps=0.0, density=0.3, block=16):
        alone = [generate(pipe, seeds=(seed,)) for seed, pipe in enumerate(pipes)]
        with ThreadPoolExecutor(2) as pool:
            for _ in range(3):
                jobs = [pool.submit(generate, pipe, seeds=(seed,)) for seed, pipe in enumerate(pipes)]
                assert all(torch.equal(job.result(), clean) for job, clean in zip(jobs, alone, strict=True))


def test_a_handle_takes_off_only_what_it_put_on() -> None:
    pipe = pipeline("wan-2.1")
    old = accel.enable(pipe, "adaspa")
    accel.enable(pipe, "xattention")
    old.disable()
    assert type(pipe.transformer.blocks[0].attn1.processor).__name__ == "SparseWanAttnProcessor"
    accel.disable(pipe)
    assert type(pipe.transformer.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"


def test_a_block_gives_back_what_was_attached_before_it() -> None:
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, "adaspa", **SPARSE) as outer:
        first = generate(pipe)
        with accel.enabled(pipe, "xattention", dense_steps=1.0):
            assert not torch.equal(generate(pipe), first)
        assert torch.equal(generate(pipe), first) and {record.kind for record in outer.stats()} > {"sparse"}


def test_disable_restores_everything() -> None:
    pipe = pipeline("wan-2.2")
    before = [dict(pipe.transformer.attn_processors), dict(pipe.transformer_2.attn_processors)]
    handle = accel.enable(pipe, "adaspa")
    accel.enable(pipe, "sparse-vdit")  # attaching again replaces
    assert type(pipe.transformer.blocks[0].attn2.processor).__name__ == "WanAttnProcessor"
    accel.disable(pipe)
    handle.disable()
    for model, processors in zip((pipe.transformer, pipe.transformer_2), before, strict=True):
        assert all(model.attn_processors[key] is value for key, value in processors.items())
        assert "accel_progress" not in model._diffusers_hook.hooks


def test_processors_can_be_set_by_hand() -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    pipe.transformer.set_attn_processor(accel.attn_processors(pipe.transformer, "adaspa", **FULL))
    assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max()


def test_our_kernel_serves_dense_calls_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    served: list[tuple[int, ...]] = []

    def note(call: AttentionCall, block: int = 64) -> tuple[Tensor, Tensor]:
        served.append(tuple(call.q.shape))
        return full_attention(call, block)

    monkeypatch.setattr(session, "outruns_sdpa", lambda q: True)
    monkeypatch.setattr(session, "full_attention", note)
    with accel.enabled(pipe, "xattention", dense_steps=1.0) as handle:
        ours = generate(pipe)
        assert {record.kind for record in handle.stats()} == {"dense"} and len(served) == len(handle.stats())
        assert (ours - stock).abs().max() < 2e-5 * stock.abs().max()
        served.clear()
        pipe.transformer.set_attention_backend("native")  # who asks for a backend gets it
        assert torch.equal(generate(pipe), stock) and not served
        pipe.transformer.reset_attention_backend()
        with attention_backend("_native_math"):
            generate(pipe)
        assert not served


@pytest.mark.parametrize("name", ["adaspa", "sparse-vdit", "re-ttention"])
def test_a_chosen_backend_computes_refresh_steps_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "outruns_sdpa", lambda q: True)
    pipe, served = pipeline("wan-2.1"), []
    backend = AttentionBackendName("_native_math")

    def note(*arguments: Any, **options: Any) -> Tensor:
        served.append(1)
        return _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE](*arguments, **options)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, backend, note)
    with accel.enabled(pipe, name, density=0.3, dense_steps=0.4, block=16) as handle:
        pipe.transformer.set_attention_backend("_native_math")
        assert pipe.transformer.blocks[0].attn1.processor._attention_backend == "_native_math"
        served.clear()
        generate(pipe)
        kinds = [record.kind for record in handle.stats()]
        assert kinds.count("refresh") > 0
        # Cross-attention runs on the same backend: one call more for each call of ours.
        assert len(served) == len(kinds) + kinds.count("dense") + kinds.count("refresh")
    pipe.transformer.set_attention_backend("native")


def _attend(heads_of_keys: int = 2, dtype: torch.dtype = torch.float32, **arguments: Any) -> tuple[Tensor, Tensor, Any]:
    """Return stock and ours of one call with a model's own arguments, and our records."""
    model = transformer(0)
    handle = accel.enable(model, "full", block=16)
    processor = model.blocks[0].attn1.processor
    processor.session.denoising.begin_call(Geometry(2, 4, 4), Progress(0, 1, "cond"))
    q = torch.randn(1, 32, 2, 32, dtype=dtype)
    k, v = torch.randn(2, 1, 32, heads_of_keys, 32, dtype=dtype)
    given = dict(dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, parallel_config=None) | arguments
    with torch.no_grad():
        ours = processor._attend_dispatched(q, k, v, None, given)
        stock = dispatch_attention_fn(q, k, v, **given)
    return ours, stock, handle.stats()


def test_a_models_own_scale_is_obeyed() -> None:
    ours, stock, records = _attend(scale=0.5)
    assert (ours - stock).abs().max() < 1e-5 and records[0].kind == "sparse"


def test_heads_that_share_keys_are_sparse() -> None:
    ours, stock, records = _attend(heads_of_keys=1, enable_gqa=True)
    assert (ours - stock).abs().max() < 1e-5 and records[0].kind == "sparse"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (dict(is_causal=True), "causal"),
        (dict(dtype=torch.float64), "not torch.float64"),
    ],
)
def test_what_no_plan_can_obey_runs_dense_and_says_so(arguments: dict[str, Any], reason: str) -> None:
    with pytest.warns(UserWarning, match=reason):
        ours, stock, records = _attend(**arguments)
    assert torch.equal(ours, stock) and not records


def test_where_only_the_reference_could_run_it_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over blocks in Python takes seconds a call on a GPU."""
    asked: list[Any] = []
    monkeypatch.setattr(session, "backend_reasons", lambda *kind: asked.append(kind) or {"triton": "72 channels"})
    attending = session.Session(by_name("full", block=16), 1)
    call = make_call(0, 2)
    attending.denoising.begin_call(GRID, call.progress)
    q = call.q.transpose(1, 2).to("meta")
    with pytest.warns(UserWarning, match="only the slow reference could run here: 72 channels"):
        outs = [attending.attend(0, q, q, q, stock=lambda q, k, v, mask: q + 0) for _ in range(2)]
    assert outs[1].shape == q.shape and asked == [("meta", torch.float32, q.shape[-1])]


def test_what_a_generation_remembers_goes_with_its_last_step() -> None:
    """The pipeline says that it has ended when the video is decoded, which takes memory."""
    pipe, remembered = pipeline("wan-2.1"), []
    caches = ("table:every=2:order=1", "prune:threshold=1.0", "dual-block:first=1")
    caches += ("dual-block:first=1:threshold=1:warmup=1",)  # its last step rests
    for method, cache in (("adaspa", None), *((None, cache) for cache in caches)):
        with accel.enabled(pipe, method, cache, **(SPARSE if method else {})) as handle:

            def note(
                pipe: Any, step: int, timestep: Any, arguments: dict[str, Any], handle: accel.Handle = handle
            ) -> dict[str, Any]:
                remembered.append(handle.memory_bytes())
                return arguments

            first = generate(pipe, callback_on_step_end=note)
            assert remembered[-1] == 0 < remembered[-2] <= handle.peak_memory_bytes()
            assert torch.equal(generate(pipe), first)


def test_what_one_expert_remembered_goes_when_the_other_has_taken_over() -> None:
    pipe, remembered = pipeline("wan-2.2"), []
    with accel.enabled(pipe, "adaspa", density=0.3, block=16, dense_steps=0.0) as handle:
        first = pipe.transformer._diffusers_hook.get_hook("accel_progress").session.denoising

        def note(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
            remembered.append(first.latest.memory_bytes())
            return arguments

        made = generate(pipe, callback_on_step_end=note)
        assert remembered[0] > 0 == remembered[-2] == remembered[-1]
        assert torch.equal(generate(pipe), made) and handle.memory_bytes() == 0


def test_a_pipeline_that_took_the_parts_over_knows_the_step() -> None:
    first = Loop("ltx")
    handle = accel.enable(first, "adaspa", **SPARSE)
    second = copy.copy(first)  # as from_pipe does
    del first
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second()
    assert {record.kind for record in handle.stats()} == {"refresh", "sparse"}


def test_a_handle_does_not_keep_the_transformer() -> None:
    pipe = pipeline("wan-2.1")
    gone = weakref.ref(pipe.transformer)
    handle = accel.enable(pipe, "adaspa", cache="easy", **SPARSE)
    generate(pipe)
    del pipe
    gc.collect()
    assert gone() is None and "WanTransformer3DModel (2 layers)" in handle.summary() and handle.stats()
    handle.disable()


def test_a_plan_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    class Forgetful:
        def plan(self, call: AttentionCall, memory: LayerMemory) -> Any:
            """Return nothing."""

    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, Forgetful()), pytest.raises(TypeError, match="planned None; accepted: Dense"):
        generate(pipe)
    for wrong in (dict(method=Forgetful), dict(method=None, cache=EasyCache)):
        name = "Forgetful" if wrong["method"] else "EasyCache"
        with pytest.raises(ValueError, match=rf"is the class {name}; give one of it: {name}\(\)"):
            accel.enable(pipe, **wrong)


def test_an_option_may_be_one_of_some_words_or_anything() -> None:
    @dataclass(frozen=True)
    class Local(Scheduled):
        mode: Literal["row", "column"] = "row"
        table: Any = None

        def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
            """Return dense."""
            return Dense()

    assert Local(mode="column", table=object()).mode == "column"
    with pytest.raises(ValueError, match="mode must be 'row' or 'column', got 'diagonal'"):
        Local(mode="diagonal")  # type: ignore[arg-type]


def test_a_batch_of_another_size_has_a_memory_of_its_own() -> None:
    attending = session.Session(by_name("re-ttention", density=0.4, block=16, dense_steps=0.2), 1)
    for step, batch in enumerate((2, 2, 2, 1, 1)):
        call = make_call(step, 10, batch=batch)
        attending.denoising.begin_call(GRID, call.progress)
        q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
        out = attending.attend(0, q, k, v, stock=lambda *given, call=call: call.dense().transpose(1, 2))
        assert out.shape == q.shape


def test_unknown_step_runs_dense_with_one_warning() -> None:
    model = transformer(0)
    latents, text = torch.randn(1, 16, 3, 8, 8), embeddings(1)
    with torch.no_grad():
        stock = model(latents, torch.tensor([500.0]), text, return_dict=False)[0]
        accel.enable(model, "adaspa")
        with pytest.warns(UserWarning, match="accel runs dense attention: the denoising step"):
            first = model(latents, torch.tensor([500.0]), text, return_dict=False)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = model(latents, torch.tensor([400.0]), text, return_dict=False)[0]
    assert torch.equal(first, stock) and second.shape == stock.shape


def test_quantised_or_fused_projections_keep_working() -> None:
    pipe = pipeline("wan-2.1")
    pipe.transformer.fuse_qkv_projections()
    stock = generate(pipe)
    with accel.enabled(pipe, "adaspa", **FULL):
        assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max()


def test_bad_input() -> None:
    pipe = pipeline("wan-2.1")
    with pytest.raises(ValueError, match="unknown method 'magic'; accepted: sparse-vdit, adaspa"):
        accel.enable(pipe, "magic")
    with pytest.raises(ValueError, match="no option densty; accepted: density"):
        accel.enable(pipe, "adaspa", densty=0.3)
    with pytest.raises(ValueError, match="only go with a method's name"):
        accel.enable(pipe, by_name("adaspa"), density=0.3)
    with pytest.raises(ValueError, match="only go with a method's name"):
        accel.attn_processors(pipe.transformer, by_name("adaspa"), density=0.3)
    with pytest.raises(ValueError, match="method is None; give the name of one"):
        accel.enable(pipe, None)
    with pytest.raises(ValueError, match="Linear is not a supported transformer; accepted: WanTransformer3D"):
        accel.enable(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="object has no transformer"):
        accel.enable(object())
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 0"):
        by_name("adaspa", density=0)


def test_options_may_stand_in_the_name() -> None:
    pipe = pipeline("wan-2.1")
    handle = accel.enable(pipe, "re-ttention:base=adaspa", density=0.4)
    assert "AdaSpa(density=0.4" in handle.summary()
    handle.disable()
    with pytest.raises(ValueError, match="unknown method 'svg_ear'; did you mean 'svg-ear'\\? accepted: sparse-vdit"):
        accel.enable(pipe, "svg_ear")


def test_a_summary_says_that_nothing_came() -> None:
    pipe = pipeline("wan-2.1")
    stock = pipe.transformer.attn_processors
    handle = accel.enable(pipe, "adaspa", **SPARSE)
    pipe.transformer.set_attn_processor(dict(stock))
    with pytest.warns(UserWarning, match="2 layers had their processors replaced after accel.enable; call it again"):
        generate(pipe)
    assert "no attention call has come here" in handle.summary()
    with pytest.raises(ValueError, match="WanPipeline is a pipeline; give its transformer"):
        accel.attn_processors(pipe, "adaspa")
    pipe.transformer.set_attn_processor("adaspa")
    with pytest.raises(ValueError, match="the processor of blocks.0.attn1 is 'adaspa'; set one of diffusers'"):
        accel.enable(pipe, "adaspa")
    both = pipeline("wan-2.2")
    both.transformer_2.set_attn_processor("adaspa")
    with pytest.raises(ValueError, match="the processor of blocks.0.attn1 is 'adaspa'"):
        accel.enable(both, "svg-ear", cache="easy")
    stock = both.transformer.blocks[0].attn1.processor
    assert type(stock).__name__ == "WanAttnProcessor" and not hasattr(both.transformer, "_diffusers_hook")


def test_what_is_set_on_processors_while_attached_stays() -> None:
    """Else `enable_parallelism` and then `disable` leaves each rank with its own half of the keys."""
    model = transformer(0)
    config: Any = object()
    with accel.enabled(model, "full", block=16):
        processor = model.blocks[0].attn1.processor
        processor._parallel_config = config
        assert processor._parallel_config is config
        model.set_attention_backend("_native_flash")
    stock = model.blocks[0].attn1.processor
    assert type(stock).__name__ == "WanAttnProcessor" and stock._parallel_config is config
    assert stock._attention_backend == "_native_flash"


def test_our_backend_is_for_our_processors() -> None:
    accel.enable(transformer(0), "full", block=16)
    q = torch.randn(1, 8, 2, 16)
    with pytest.raises(ValueError, match="'_accel' is for accel's own processors; choose one of diffusers'"):
        dispatch_attention_fn(q, q, q, backend=AttentionBackendName("_accel"))


@pytest.mark.filterwarnings("ignore:accel runs dense attention")
def test_a_summary_says_why_all_ran_dense() -> None:
    loop = Loop("wan-2.1")
    handle = accel.enable(loop.transformer, "adaspa", **SPARSE)
    with torch.no_grad():
        loop.transformer(**loop.inputs)
    assert re.search("latest generation: [1-9]+ attention calls ran dense: the denoising step", handle.summary())
    assert "no attention call has come here" not in handle.summary() and not handle.stats()
