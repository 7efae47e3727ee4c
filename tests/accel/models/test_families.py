"""What every model family owes, over all that diffusers has a tiny transformer of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_kandinsky

import accel
from accel.caching.table import BlockTable, Table
from accel.methods.registry import METHODS
from accel.models.adapters import ADAPTERS, adapter_for, supported_classes
from accel.models.adapters.left_dense import REASONS
from tests.accel.models.loops import STEPS, Loop, difference, processors, stock_of, without_torchvision
from tests.accel.models.tiny_models import TINY, self_attention

FULL = dict(block=16)
SPARSE = dict(density=0.4, dense_steps=0.25, query_clusters=4, key_clusters=8)
FAMILIES = [name for name, tiny in TINY.items() if tiny.cls in supported_classes()]


def has_latents(name: str) -> bool:
    """Whether the family tells what it denoises, which caches of whole calls need."""
    return any(TINY[name].cls in adapter.classes and adapter.latents is not None for adapter in ADAPTERS)


MASKED = "skyreels-v2-causal"  # its mask says more than what is padding
KNOWN_DENSE = [name for name, tiny in TINY.items() if tiny.cls in REASONS and name != "wan-animate-2"]

# What diffusers' own code of two models warns of on a CPU.
pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported"),
]

every_family = pytest.mark.parametrize("name", [name for name in FAMILIES if name != MASKED])


@pytest.fixture(autouse=True)
def cosmos_without_torchvision() -> Iterator[None]:
    with without_torchvision():
        yield


class UnroundedTorch:
    """Torch, but for float32 where Kandinsky 5 names bfloat16."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@every_family
def test_full_attention_equals_stock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It rounds queries and keys to bfloat16, where a difference of 1e-7 now and then falls to the other side.
    monkeypatch.setattr(transformer_kandinsky, "torch", UnroundedTorch())
    loop = Loop(name)
    stock, before = loop(), processors(loop.transformer)
    modules = adapter_for(loop.transformer).modules(loop.transformer)
    assert set(modules) == set(self_attention(name, loop.transformer))
    with accel.enabled(loop, "full", **FULL) as handle:
        ours = loop()
        records = handle.stats()
    assert difference(ours, stock) < 2e-6
    assert {record.kind for record in records} == {"sparse"} and {record.step for record in records} == set(
        range(STEPS)
    )
    assert len(records) >= STEPS * len(modules)
    grid = TINY[name].grid
    assert handle.geometry is not None and grid is not None
    assert handle.geometry.grid == (grid if name != "latte" else (1, *grid[1:]))
    assert processors(loop.transformer) == before and difference(loop(), stock) == 0


@every_family
def test_sparse_generations_repeat(name: str) -> None:
    loop, stock = Loop(name), stock_of(name)
    with accel.enabled(loop, "svg-ear", **SPARSE) as handle:
        first = loop()
        records = handle.stats()
        second = loop()
    assert {record.kind for record in records} == {"dense", "sparse"}
    assert 1e-4 < difference(first, stock) < 0.5 and difference(second, first) == 0
    assert all(record.density < 1 for record in records if record.kind == "sparse")
    assert handle.memory_bytes() == 0 < handle.peak_memory_bytes()


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("full", "svg-ear")])
@pytest.mark.parametrize("name", ["hunyuan-video", "cogvideox-5b", "ltx-2", "minimax-h3", "mochi"])
def test_every_method_runs_around_other_rows(name: str, method: str) -> None:
    loop, stock = Loop(name), stock_of(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a window of density")
        with accel.enabled(loop, method, density=0.4, dense_steps=0.25) as handle:
            ours = loop()
    assert difference(ours, stock) < 0.5
    assert {record.step for record in handle.stats()} == set(range(STEPS))


@pytest.mark.parametrize("name", ["hunyuan-video", "hunyuan-video-1.5", "qwen-image"])
def test_prompts_of_different_lengths_are_single_runs(name: str) -> None:
    loop = Loop(name)
    mask_name = next(key for key in loop.inputs if key.endswith("_mask"))
    batch = {key: torch.cat([value, value]) for key, value in loop.inputs.items() if isinstance(value, torch.Tensor)}
    if "img_shapes" in loop.inputs:
        batch["img_shapes"] = loop.inputs["img_shapes"] * 2
    masks = loop.inputs[mask_name].clone(), loop.inputs[mask_name].clone()
    masks[1][:, 4:] = 0
    for method, options in (("full", FULL), ("svg-ear", SPARSE)):
        with accel.enabled(loop, method, **options):
            alone = [loop(**{mask_name: mask}) for mask in masks]
            both = loop(**(batch | {mask_name: torch.cat(masks)}))
        for row, single in enumerate(alone):
            assert difference([step[row : row + 1] for step in both], single) < 2e-5


@pytest.mark.parametrize("name", ["flux", "z-image", "cosmos-2"])
def test_steps_are_counted_where_timesteps_are_scaled(name: str) -> None:
    loop = Loop(name)
    with accel.enabled(loop, "svg-ear", **SPARSE) as handle:
        loop()
        assert [record.step for record in handle.stats() if record.layer == 0] == list(range(STEPS))
        with torch.no_grad():  # the pipeline's schedule counts to a thousand, the model's to one
            loop.scheduler.timesteps = torch.tensor([999.0, 700.0, 300.0])
            for value in (0.999, 0.7, 0.3):
                given = loop.inputs | {loop.timestep: torch.full_like(loop.inputs[loop.timestep], value)}
                loop.transformer(**given, return_dict=False)
        assert [record.step for record in handle.stats() if record.layer == 0] == [0, 1, 2]
        assert {record.steps for record in handle.stats()} == {3}


def test_a_mask_that_says_more_than_padding_runs_dense() -> None:
    loop = Loop(MASKED)
    stock = loop()
    with (
        accel.enabled(loop, "svg-ear", **SPARSE) as handle,
        pytest.warns(UserWarning, match="attention mask that says more"),
    ):
        assert difference(loop(), stock) == 0
    assert not handle.stats()


@pytest.mark.parametrize("name", KNOWN_DENSE)
def test_what_cannot_be_sparse_says_why(name: str) -> None:
    loop = Loop(name)
    before = processors(loop.transformer)
    with pytest.warns(UserWarning, match=f"accel leaves {TINY[name].cls} dense: .*{REASONS[TINY[name].cls][-20:]}"):
        handle = accel.enable(loop, "svg-ear")
    assert processors(loop.transformer) == before and handle.stats() == []
    accel.disable(loop)


def test_a_class_without_set_attn_processor_takes_no_dict_of_them() -> None:
    loop = Loop("mochi")
    with pytest.raises(ValueError, match="MochiTransformer3DModel has no set_attn_processor; call accel.enable"):
        accel.attn_processors(loop.transformer, "svg-ear")


def test_an_unknown_class_names_the_nearest() -> None:
    class HunyuanVideo2Transformer3DModel(torch.nn.Linear):
        pass

    unknown: Any = HunyuanVideo2Transformer3DModel(1, 1)
    with pytest.raises(ValueError, match="nearest that are: HunyuanVideo.*CONTRIBUTING.md has a recipe"):
        accel.enable(unknown, "svg-ear")
    accel.disable(unknown)  # nothing is attached, and nothing happens
    with pytest.raises(ValueError, match="wraps a compiled transformer"):
        accel.enable(torch.compile(Loop("wan-2.1").transformer), "svg-ear")


CACHED = [name for name in FAMILIES if has_latents(name)]


@pytest.mark.parametrize("name", CACHED)
def test_whole_calls_rest_in_every_family_with_one_output(name: str) -> None:
    loop, stock = Loop(name), stock_of(name)
    with accel.enabled(loop, None, cache="easy:threshold=0:warmup=1"):
        assert difference(loop(), stock) == 0
    with accel.enabled(loop, None, cache="easy:threshold=9:warmup=1") as handle:
        first = loop()
        kinds = [record.kind for record in handle.blocks()]
        second = loop()
    assert kinds == ["computed", "computed", "reused", "computed"] and handle.memory_bytes() == 0
    assert 0 < difference(first, stock) < 0.5 and difference(second, first) == 0 == difference(loop(), stock)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(CACHED)))
def test_other_families_take_no_cache(name: str) -> None:
    with pytest.raises(ValueError, match="has no latents that accel knows how to compare; leave the cache out"):
        accel.enable(Loop(name), None, cache="easy")


BLOCKS = [name for name in CACHED if any(TINY[name].cls in each.classes and each.blocks for each in ADAPTERS)]


def blocks_of(loop: Loop) -> int:
    adapter = adapter_for(loop.transformer)
    assert adapter.blocks is not None
    return len(adapter.blocks(loop.transformer))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_rest_with_all_that_they_hand_on(name: str) -> None:
    """Where nothing changes from step to step, what is reused is what would have been computed, text included."""
    loop, stock, still = Loop(name), stock_of(name), stock_of(name, still=True)
    depth = blocks_of(loop)
    with accel.enabled(loop, None, cache="table:every=1"):
        assert difference(loop(), stock) == 0
    for letters, same in (("r" * depth, True), ("r" + "c" * (depth - 1), True), ("s" + "c" * (depth - 1), False)):
        table = BlockTable(TINY[name].cls, ("c" * depth, letters, letters, letters))
        with accel.enabled(loop, None, cache=Table(table=table)) as handle:
            ours = loop(still=True)
            rested = sum(record.kind != "computed" for record in handle.blocks())
        assert rested == 3 and handle.memory_bytes() == 0
        drift = difference(still[-1:], still[:1])  # the timesteps are not quite the same
        assert difference(ours, still) < drift + 1e-5 if same else difference(ours, still) > 1e-3
    assert difference(loop(), stock) == 0


@pytest.mark.parametrize("name", BLOCKS)
def test_policies_of_blocks_run_in_every_family_with_a_stack(name: str) -> None:
    loop, stock = Loop(name), stock_of(name)
    depth = blocks_of(loop)
    caches = ["table:every=2:order=1", *(["dual-block:threshold=1", "prune:threshold=9"] if depth > 1 else [])]
    for cache in caches:
        with accel.enabled(loop, None, cache=f"{cache}:warmup=1") as handle:
            first = loop()
            kinds = {record.kind for record in handle.blocks()}
            second = loop()
        assert kinds == {"computed", "reused"}
        assert 0 < difference(first, stock) < 0.5 and difference(second, first) == 0


@pytest.mark.parametrize("name", sorted(set(CACHED) - set(BLOCKS)))
def test_schedules_let_whole_calls_rest_where_no_stack_is_known(name: str) -> None:
    loop, stock = Loop(name), stock_of(name)
    with accel.enabled(loop, None, cache="table:every=2:order=1:warmup=1") as handle:
        ours = loop()
        kinds = [record.kind for record in handle.blocks()]
    assert kinds == ["computed", "reused", "computed", "reused"] and 0 < difference(ours, stock) < 0.5
    for cache in ("dual-block", "prune"):
        with pytest.raises(ValueError, match="no block stack that accel knows; take the cache easy or table:every=2"):
            accel.enable(loop, None, cache=cache)
