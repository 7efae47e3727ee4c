"""Caches beside what else sits on a transformer: sparse attention, diffusers' own caches, offloading, other handles."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import (
    HookRegistry,
    ModelHook,
    apply_first_block_cache,
    apply_group_offloading,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_sea_cache,
    apply_taylorseer_cache,
)
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

import accel
from accel.attach import adapter_for
from accel.caching import alone
from accel.caching.dual_block import DualBlock
from accel.caching.easy import EasyCache
from accel.caching.registry import POLICIES, from_text
from accel.caching.resting import Resting
from accel.caching.table import BlockTable, Table
from accel.models.denoising import Denoising
from tests.accel.models.combinations import COMBINATIONS
from tests.accel.offloading import spoil_what_is_offloaded
from tests.accel.routing.made import wan_routers
from tests.accel.wan_models import STEPS, embeddings, generate, pipeline, transformer

SPARSE = dict(density=0.3, block=16)
RESTS = EasyCache(warmup=1, threshold=1.0)


def kinds_by_step(handle: accel.Handle) -> dict[int, set[str]]:
    """Return the kinds of attention calls in each step."""
    return {
        step: {call.kind for call in handle.stats() if call.step == step} for step in {c.step for c in handle.stats()}
    }


@pytest.mark.parametrize(
    ("method", "letters", "expected"),
    [
        # The search of the last dense step, which rests, moves to the next step that is computed.
        ("adaspa", "crccc", {0: {"dense"}, 2: {"refresh"}, 3: {"sparse"}, 4: {"sparse"}}),
        ("sparse-vdit", "crccc", {0: {"dense"}, 2: {"refresh"}, 3: {"sparse"}, 4: {"sparse"}}),
        # A full step every second one: that of step 4 comes late, by the loop's index and no count of calls.
        ("re-ttention:every=2", "cccrc", {0: {"dense"}, 1: {"dense"}, 2: {"refresh"}, 4: {"refresh"}}),
        ("re-ttention:every=2", "ccccr", {0: {"dense"}, 1: {"dense"}, 2: {"refresh"}, 3: {"sparse"}}),
        # Attention's dense warm-up is one of the loop: steps that rest count as well.
        ("svg-ear", "crccc", {0: {"dense"}, 2: {"sparse"}, 3: {"sparse"}, 4: {"sparse"}}),
    ],
)
def test_searches_and_refreshes_move_to_the_next_computed_step(
    method: str, letters: str, expected: dict[int, set[str]]
) -> None:
    pipe, table = (
        pipeline("wan-2.1"),
        Table(BlockTable("WanTransformer3DModel", tuple(letter * 2 for letter in letters))),
    )
    name, *rest = method.split(":")
    options: dict[str, Any] = {"density": 0.3, "dense_steps": 0.4, **({"every": 2} if rest else {})}
    options |= {} if name == "svg-ear" else {"block": 16}
    with accel.enabled(pipe, name, cache=table, **options) as handle:
        assert generate(pipe).isfinite().all()
        assert kinds_by_step(handle) == expected


def test_blocks_of_one_layer_rest_alone() -> None:
    pipe, table = pipeline("wan-2.1"), Table(BlockTable("WanTransformer3DModel", ("cc", "rc", "cr", "sc", "cc")))
    with accel.enabled(pipe, "adaspa", cache=table, dense_steps=0.2, **SPARSE) as handle:
        generate(pipe)
        calls = {(call.step, call.layer) for call in handle.stats()}
        assert calls == {(0, 0), (0, 1), (1, 1), (2, 0), (3, 1), (4, 0), (4, 1)}
        assert "0.700 computed, 0.200 reused, 0.100 skipped" in handle.summary()


THEIRS = {
    "FirstBlockCache": lambda pipe: FirstBlockCacheConfig(threshold=2.0),
    "MagCache": lambda pipe: MagCacheConfig(
        threshold=5.0, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS, retention_ratio=0.2
    ),
    # Its own patterns end in "attn" and find nothing in Wan.
    "TaylorSeerCache": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"blocks\.\d+\.attn\d"],
    ),
    "PyramidAttentionBroadcast": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1001),
        current_timestep_callback=lambda: pipe._current_timestep,
    ),
    "SeaCache": lambda pipe: SeaCacheConfig(threshold=5.0),
}


APPLY: dict[str, Any] = {
    "FirstBlockCache": apply_first_block_cache,
    "MagCache": apply_mag_cache,
    "TaylorSeerCache": apply_taylorseer_cache,
    "PyramidAttentionBroadcast": apply_pyramid_attention_broadcast,
    "SeaCache": apply_sea_cache,
}


@pytest.mark.parametrize("cache_first", [True, False])
@pytest.mark.parametrize("name", THEIRS)
def test_sparse_attention_works_under_a_cache_of_diffusers(name: str, cache_first: bool) -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    config = THEIRS[name](pipe)
    pipe.transformer.enable_cache(config)
    cached = generate(pipe)
    assert not torch.equal(cached, stock), "it reuses something"
    if not cache_first:
        pipe.transformer.disable_cache()
    # Full attention by our kernel shows that calls reach us, and that nothing else is different.
    handle = accel.enable(pipe, "full", block=16, dense_steps=0)
    if not cache_first:
        pipe.transformer.enable_cache(config)
    assert (generate(pipe) - cached).abs().max() < 2e-5 * cached.abs().max()
    assert 0 < len(handle.stats()) < 2 * STEPS * 2
    accel.enable(pipe, "adaspa", dense_steps=0.2, **SPARSE)
    first = generate(pipe)
    assert first.isfinite().all() and torch.equal(generate(pipe), first)
    accel.disable(pipe)
    assert torch.equal(generate(pipe), cached), "the cache is still there"
    pipe.transformer.disable_cache()
    assert torch.equal(generate(pipe), stock)


@contextmanager
def their_cache(name: str, pipe: Any, applied: bool) -> Iterator[None]:
    """Put a cache of diffusers on a transformer by its method, or apply it by its function, for a `with` block."""
    if applied:
        APPLY[name](pipe.transformer, THEIRS[name](pipe))
    else:
        pipe.transformer.enable_cache(THEIRS[name](pipe))
    yield
    if not applied:
        pipe.transformer.disable_cache()
        return
    for module in pipe.transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in [] if registry is None else list(registry.hooks):
            if "accel" not in hook:
                registry.remove_hook(hook, recurse=False)


@pytest.mark.parametrize("applied", [False, True], ids=["enabled", "applied"])
@pytest.mark.parametrize("name", THEIRS)
def test_two_caches_at_once_are_refused(name: str, applied: bool) -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    said = "applied to this WanTransformer3DModel, as the hook" if applied else "enabled on this WanTransformer3DModel"
    message = f"diffusers' {name} is {said}.*, and one cache at a time is accepted: "
    with their_cache(name, pipe, applied):
        with pytest.raises(ValueError, match=message):
            accel.enable(pipe, "svg-ear", cache="easy")
        assert not any("accel" in hook for hook in pipe.transformer._diffusers_hook.hooks), "nothing was attached"
    accel.enable(pipe, None, cache="easy")
    with their_cache(name, pipe, applied), pytest.raises(ValueError, match=message):
        generate(pipe)
    accel.disable(pipe)
    assert torch.equal(generate(pipe), stock)


def test_hooks_of_all_caches_of_diffusers_are_known() -> None:
    """Those that it takes off itself; a new version may have others."""
    names = set(re.findall(r"_[A-Z_]+_HOOK\b", inspect.getsource(CacheMixin.disable_cache)))
    modules = [module for name, module in sys.modules.items() if name.startswith("diffusers.hooks.")]
    hooks = {name: hook for module in modules for name, hook in vars(module).items() if name in names}
    assert len(names) > 5 and hooks.keys() == names
    assert all(hook.startswith(tuple(alone.THEIRS)) for hook in hooks.values())


@pytest.mark.parametrize("offload_first", [True, False])
@pytest.mark.parametrize("policy", [RESTS, DualBlock(warmup=1, threshold=1, first=1)])
def test_group_offloading(policy: Any, offload_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, offloaded = pipeline("wan-2.1"), spoil_what_is_offloaded(monkeypatch)
    with accel.enabled(pipe, None, cache=policy):
        expected = generate(pipe)

    def offload() -> None:
        cpu = torch.device("cpu")
        apply_group_offloading(pipe.transformer, cpu, cpu, offload_type="block_level", num_blocks_per_group=1)

    if offload_first:
        offload()
    with accel.enabled(pipe, None, cache=policy) as handle:
        if not offload_first:
            offload()
        assert offloaded and torch.equal(generate(pipe), expected)
        assert "reused" in {record.kind for record in handle.blocks()}
    generate(pipe)


def test_a_block_runs_whose_group_was_to_be_loaded_by_one_that_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers loads several blocks at once, when the first of them is called."""
    pipe, offloaded, cpu = pipeline("wan-2.1"), spoil_what_is_offloaded(monkeypatch), torch.device("cpu")
    first_rests = Table(table=BlockTable("", tuple("cc" if step == 0 else "rc" for step in range(STEPS))))
    with accel.enabled(pipe, None, cache=first_rests):
        expected = generate(pipe)
    apply_group_offloading(pipe.transformer, cpu, cpu, offload_type="block_level", num_blocks_per_group=2)
    with accel.enabled(pipe, None, cache=first_rests) as handle:
        assert offloaded and torch.equal(generate(pipe), expected)
        assert {record.kind for record in handle.blocks()} == {"computed", "reused"}


@pytest.mark.parametrize("offload_first", [True, False])
def test_a_block_that_rests_is_offloaded(offload_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, offloaded, cpu = pipeline("wan-2.1"), spoil_what_is_offloaded(monkeypatch), torch.device("cpu")
    last_rests = Table(table=BlockTable("", tuple("cc" if step == 0 else "cr" for step in range(STEPS))))

    def offload() -> None:
        apply_group_offloading(pipe.transformer, cpu, cpu, offload_type="block_level", num_blocks_per_group=2)

    if offload_first:
        offload()
    accel.enable(pipe, None, cache=last_rests)
    if not offload_first:
        offload()
    count = len(offloaded)
    generate(pipe)
    assert len(offloaded) == count > 0, "all of them are again"


def test_a_class_made_of_ours_decides_once() -> None:
    """As FSDP makes one of each block's class."""
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    handle = accel.enable(pipe, None, cache=RESTS)
    first, decided = generate(pipe), len(handle.blocks())
    for block in pipe.transformer.blocks:
        block.__class__ = type(f"FSDP{type(block).__name__}", (type(block),), {})
    assert torch.equal(generate(pipe), first)
    handle.disable()
    assert torch.equal(generate(pipe), stock)
    handle = accel.enable(pipe, None, cache=RESTS)
    assert torch.equal(generate(pipe), first) and len(handle.blocks()) == decided


class FSDPModule:
    """Torch's, by its name."""


@pytest.mark.parametrize("cache", ["easy:threshold=9:warmup=1", "prune:threshold=1:warmup=1", "table:every=2:warmup=1"])
def test_devices_that_share_weights_run_the_same_blocks(cache: str) -> None:
    pipe, by_content = pipeline("wan-2.1"), not cache.startswith("table")
    for part in (pipe.transformer, *pipe.transformer.blocks):
        part.__class__ = type(type(part).__name__, (FSDPModule, type(part)), {})
    said = (
        pytest.warns(UserWarning, match=r"everything: devices share the weights \(FSDP\)")
        if by_content
        else nullcontext()
    )
    with accel.enabled(pipe, None, cache=cache) as handle, said:
        generate(pipe)
        assert ("reused" in {record.kind for record in handle.blocks()}) != by_content


def test_both_experts_rest_and_know_only_their_own_past() -> None:
    pipe = pipeline("wan-2.2")
    pipe.register_to_config(boundary_ratio=0.9)
    with accel.enabled(pipe, None, cache=Table(every=2, warmup=1)) as handle:
        first = generate(pipe)
        experts = [{r.step: r.kind for r in denoising.blocks} for denoising in handle._generations]
        assert sorted([*experts[0], *experts[1]]) == list(range(STEPS)) and experts[0] and experts[1]
        # Step 3 would rest if it were the first expert's; the second computes its first step, and rests by the loop.
        for expert in experts:
            first_step, *later = sorted(expert)
            assert expert[first_step] == "computed" and "reused" in expert.values()
            assert all(expert[step] == ("reused" if step % 2 else "computed") for step in later)
        assert torch.equal(generate(pipe), first)


def test_a_block_gives_back_the_cache_that_was_there_before_it() -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    with accel.enabled(pipe, None, cache=RESTS) as outer:
        first = generate(pipe)
        with accel.enabled(pipe, "adaspa", **SPARSE) as inner:
            generate(pipe)
            assert not inner.blocks() and inner.stats()
        assert torch.equal(generate(pipe), first) and outer.blocks()
        with accel.enabled(pipe, None, cache=DualBlock(warmup=1, threshold=1)):
            assert not torch.equal(generate(pipe), first)
        assert torch.equal(generate(pipe), first)
    assert torch.equal(generate(pipe), stock)
    assert not any(hasattr(m, "_diffusers_hook") and m._diffusers_hook.hooks for m in pipe.transformer.modules())


def test_bad_input() -> None:
    pipe = pipeline("wan-2.1")
    with pytest.raises(ValueError, match="unknown cache 'magic'; accepted: easy, dual-block"):
        accel.enable(pipe, cache="magic")
    with pytest.raises(ValueError, match="cache easy has no option treshold; accepted: order, warmup, threshold, last"):
        accel.enable(pipe, cache="easy:treshold=1")
    with pytest.raises(ValueError, match="'easy:threshold=high' cannot be used"):
        accel.enable(pipe, cache="easy:threshold=high")
    with pytest.raises(ValueError, match="threshold must be 0 or more, got -1"):
        accel.enable(pipe, cache="easy:threshold=-1")
    with pytest.raises(ValueError, match="method is None; give the name of one"):
        accel.enable(pipe, None)
    with pytest.raises(ValueError, match="only go with a method's name|method is None"):
        accel.enable(pipe, None, cache="easy", density=0.3)
    with pytest.raises(ValueError, match="first 8 and last 0 blocks always run, and the model has 2: none is left"):
        accel.enable(pipe, cache="dual-block:first=8")
    with pytest.raises(ValueError, match="first 1 and last 1 blocks always run, and the model has 2"):
        accel.enable(pipe, cache="prune:last=1")
    assert not hasattr(pipe.transformer, "_diffusers_hook"), "nothing was attached"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dual-block:threshold=-0.1", "threshold must be 0 or more, got -0.1"),
        ("dual-block:interval=0", "interval must be 1"),
        ("prune:first=0", "first must be 1 or more"),
        ("prune:last=-1", "last must be 0 or more"),
        ("dual-block:most_steps=-1", "most_steps must be 0"),
        ("prune:most_in_a_row=-1", "most_in_a_row must be 0"),
        ("dual-block:most_change=-1", "most_change must be 0"),
        ("prune:relax=-1", "relax must be 0"),
        ("prune:most_threshold=-1", "most_threshold must be 0"),
        ("dual-block:mask=012", "mask must hold a 1 or 0"),
        ("easy:last=1.5", "last must be a share below 1 or a whole number"),
        ("table:every=0", "every must be 1 or more"),
    ],
)
def test_ranges_of_options(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accel.enable(pipeline("wan-2.1"), None, cache=text)


def test_a_mask_of_zeros_is_text() -> None:
    policy = from_text("dual-block:mask=0000:static=True")
    assert isinstance(policy, DualBlock) and policy.mask == "0000" and from_text("easy:last=0").last == 0


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Already found a .peft_config"
)
@pytest.mark.parametrize("attached_first", [True, False])
@pytest.mark.parametrize("name", ["lora", "lora fused", "lora swapped", "layerwise casting", "group offload to disk"])
def test_blocks_rest_beside_what_else_is_loaded(name: str, attached_first: bool, tmp_path: Path) -> None:
    policy, other, pipe = DualBlock(warmup=1, threshold=1, first=1), pipeline("wan-2.1"), pipeline("wan-2.1")
    COMBINATIONS[name](other, tmp_path / "other")
    stock = generate(other)
    with accel.enabled(other, None, cache=policy):
        expected = generate(other)
    if not attached_first:
        COMBINATIONS[name](pipe, tmp_path / "ours")
    with accel.enabled(pipe, None, cache=policy) as handle:
        if attached_first:
            COMBINATIONS[name](pipe, tmp_path / "ours")
        assert (generate(pipe) - expected).abs().max() < 2e-5 * expected.abs().max()
        assert "reused" in {record.kind for record in handle.blocks()}
    assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max() < (expected - stock).abs().max()


def test_a_model_without_block_stacks_is_refused() -> None:
    model = transformer(0)
    adapter = dataclasses.replace(adapter_for(model), blocks=None, mlp=None)
    for name, policy in POLICIES.items():
        options: dict[str, Any] = {"routers": wan_routers(), "widths": False} if name == "routers" else {}
        if name in ("easy", "table"):
            assert Resting(policy(**options), model, adapter, Denoising()).units is None
        else:
            with pytest.raises(ValueError, match="no block stack that accel knows; take the cache easy or table:every"):
                Resting(policy(**options), model, adapter, Denoising())
        with pytest.raises(ValueError, match="no latents that accel knows how to compare; leave the cache out"):
            Resting(policy(**options), model, dataclasses.replace(adapter, latents=None), Denoising())


def test_a_shared_sequence_is_computed() -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    accel.enable(pipe, None, cache=RESTS)
    pipe.transformer._parallel_config = SimpleNamespace()
    with pytest.warns(UserWarning, match="shared among devices"):
        assert torch.equal(generate(pipe), stock)


def test_masks_and_kept_blocks_fit_the_generation_and_the_model() -> None:
    pipe = pipeline("wan-2.1")
    with pytest.raises(ValueError, match="kept is .40,., and the model has the blocks 0 to 1: give some of these"):
        accel.enable(pipe, None, cache="prune:kept=(40,)")
    with (
        accel.enabled(pipe, None, cache="dual-block:mask=110:static=True"),
        pytest.raises(ValueError, match="mask is 110, and this generation has 5 steps: give as many"),
    ):
        generate(pipe)


@pytest.mark.parametrize("cache", [RESTS, "table:every=2:warmup=1"], ids=str)
@pytest.mark.parametrize("attached_first", [True, False])
def test_offloading_of_whole_models(cache: Any, attached_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's wrapper, which brings the weights, is taken off and put back after every generation."""
    brought: list[nn.Module] = []

    def bring(hook: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        brought.append(module)
        return args, kwargs

    monkeypatch.setattr("accelerate.hooks.CpuOffload.pre_forward", bring)
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    if not attached_first:
        pipe.enable_model_cpu_offload(device="cpu")
    handle = accel.enable(pipe, None, cache=cache)
    if attached_first:
        pipe.enable_model_cpu_offload(device="cpu")
    first, shares = generate(pipe), [block.kind for block in handle.blocks()]
    assert "reused" in shares
    for _ in range(2):
        brought.clear()
        assert torch.equal(generate(pipe), first) and [block.kind for block in handle.blocks()] == shares
        assert brought.count(pipe.transformer) == 2 * STEPS
    handle.disable()
    for _ in range(2):
        brought.clear()
        assert torch.equal(generate(pipe), stock) and brought.count(pipe.transformer) == 2 * STEPS
    pipe.remove_all_hooks()
    assert torch.equal(generate(pipe), stock)


class Ear(ModelHook):
    """Notes calls, and whether the module was offloaded then."""

    def __init__(self, heard: list[bool]):
        super().__init__()
        self.heard = heard

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Note the call."""
        self.heard.append(hasattr(module, "_hf_hook"))
        return args, kwargs


def test_a_hook_inside_offloading_stays_where_it_is() -> None:
    pipe, heard = pipeline("wan-2.1"), []
    stock = generate(pipe)
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    registry.register_hook(Ear(heard), "ear")
    pipe.enable_model_cpu_offload(device="cpu")
    handle = accel.enable(pipe, None, cache=RESTS)
    generate(pipe)
    assert 0 < len(heard) < 2 * STEPS, "steps that rest do not come there"
    pipe.remove_all_hooks()
    handle.disable()
    heard.clear()
    assert torch.equal(generate(pipe), stock) and heard == [False] * 2 * STEPS
    registry.remove_hook("ear")
    assert torch.equal(generate(pipe), stock) and len(heard) == 2 * STEPS


@pytest.mark.parametrize("ours_goes_first", [True, False])
def test_a_hook_around_offloading_stays_where_it_is(ours_goes_first: bool) -> None:
    pipe, heard = pipeline("wan-2.1"), []
    stock = generate(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    handle = accel.enable(pipe, None, cache=RESTS)
    registry = pipe.transformer._diffusers_hook
    registry.register_hook(Ear(heard), "ear")
    forward = pipe.transformer.forward
    if ours_goes_first:
        handle.disable()
        assert pipe.transformer.forward is forward and pipe.transformer._hf_hook is not None
        with torch.no_grad():
            assert pipe.transformer(**_inputs(), return_dict=False)[0].isfinite().all() and heard == [True]
        registry.remove_hook("ear")
    else:
        registry.remove_hook("ear")
        made = generate(pipe)
        assert {block.kind for block in handle.blocks()} == {"computed", "reused"} and not torch.equal(made, stock)
        handle.disable()
    assert torch.equal(generate(pipe), stock) and not heard[1:]


def _inputs() -> dict[str, Tensor]:
    return dict(
        hidden_states=torch.randn(1, 16, 3, 8, 8), timestep=torch.tensor([500.0]), encoder_hidden_states=embeddings(1)
    )
