"""Methods attached to real Wan pipelines: same numbers at full density, no state left, nothing else touched."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import accel
from accel.attention.call import AttentionCall
from accel.attention.execute import full_attention
from accel.methods.registry import by_name
from accel.models import session
from tests.accel.wan_models import STEPS, embeddings, generate, pipeline, transformer

FULL: dict[str, dict[str, Any]] = {
    "full": {},
    "adaspa": dict(density=1.0, dense_steps=0.0, block=16),
    "sparse-vdit": dict(density=1.0, dense_steps=0.0, block=16, tolerance=9.0),
}
SPARSE = {"adaspa": dict(density=0.3, block=16), "sparse-vdit": dict(density=0.3, block=16, tolerance=9.0)}
KINDS = ["wan-2.1", "wan-2.1-i2v", "wan-2.2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(FULL))
def test_full_density_equals_the_stock_pipeline(kind: str, name: str) -> None:
    pipe = pipeline(kind)
    stock = generate(pipe)
    with accel.enabled(pipe, name, **FULL[name]) as handle:
        ours = generate(pipe)
        records = handle.stats()
    assert (ours - stock).abs().max() < 2e-5 * stock.abs().max()
    assert {record.kind for record in records} == ({"sparse"} if name == "full" else {"refresh", "sparse"})
    assert all(record.density == 1.0 for record in records)
    assert len(records) == STEPS * 2 * 2  # steps, branches, layers
    assert torch.equal(generate(pipe), stock)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(SPARSE))
def test_second_generation_equals_the_first(kind: str, name: str) -> None:
    pipe = pipeline(kind)
    with accel.enabled(pipe, name, **SPARSE[name]) as handle:
        first = generate(pipe)
        assert handle.memory_bytes() == 0
        generate(pipe, height=96)
        assert handle.geometry is not None and handle.geometry.height == 6
        assert torch.equal(generate(pipe), first)
    assert not torch.allclose(first, generate(pipe), atol=1e-6)


@pytest.mark.parametrize("name", list(SPARSE))
def test_a_batch_equals_single_runs(name: str) -> None:
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, name, **SPARSE[name]):
        both = generate(pipe, seeds=(0, 1))
        single = torch.cat([generate(pipe, seeds=(seed,)) for seed in (0, 1)])
    assert (both - single).abs().max() < 2e-5 * single.abs().max()


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

    with torch.no_grad(), accel.enabled(pipe, "adaspa", **SPARSE["adaspa"]) as handle:
        batched = loop(slice(0, 2))
        assert {record.branch for record in handle.stats()} == {"call 0"}
        for row in range(2):
            single = loop(slice(row, row + 1))
            for both, one in zip(batched, single, strict=True):
                assert (both[row] - one[0]).abs().max() < 2e-5


def test_branches_do_not_mix() -> None:
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, "adaspa", **SPARSE["adaspa"]) as handle:
        generate(pipe)
        assert {record.branch for record in handle.stats()} == {"cond", "uncond"}
        # The conditional branch alone must see what it saw beside the other one.
        densities = [record.density for record in handle.stats() if record.branch == "cond"]
        generate(pipe, guidance=1.0)
        assert [record.density for record in handle.stats()] == pytest.approx(densities, rel=0.2)


class Stop(Exception):
    """Raised in the middle of a generation."""


def test_an_exception_leaves_nothing_behind() -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)

    def stop(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise Stop
        return arguments

    with accel.enabled(pipe, "adaspa", **SPARSE["adaspa"]):
        clean = generate(pipe)
        with pytest.raises(Stop):
            generate(pipe, callback_on_step_end=stop)
        assert torch.equal(generate(pipe), clean)
    with pytest.raises(Stop), accel.enabled(pipe, "adaspa", **SPARSE["adaspa"]):
        generate(pipe, callback_on_step_end=stop)
    assert torch.equal(generate(pipe), stock)


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
    pipe.transformer.set_attn_processor(accel.attn_processors(pipe.transformer, "adaspa", **FULL["adaspa"]))
    assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max()


def test_the_users_backend_serves_dense_calls() -> None:
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, "adaspa", dense_steps=1.0):
        pipe.transformer.set_attention_backend("_native_math")
        assert pipe.transformer.blocks[0].attn1.processor._attention_backend == "_native_math"
        generate(pipe)
    pipe.transformer.set_attention_backend("native")


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
    with accel.enabled(pipe, "adaspa", **FULL["adaspa"]):
        assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max()


def test_bad_input() -> None:
    pipe = pipeline("wan-2.1")
    with pytest.raises(ValueError, match="unknown method 'magic'; accepted: sparse-vdit, adaspa"):
        accel.enable(pipe, "magic")
    with pytest.raises(ValueError, match="no option densty; accepted: density"):
        accel.enable(pipe, "adaspa", densty=0.3)
    with pytest.raises(ValueError, match="only go with a method's name"):
        accel.enable(pipe, by_name("adaspa"), density=0.3)
    with pytest.raises(ValueError, match="Linear is not a supported video transformer; accepted: WanTransformer3D"):
        accel.enable(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="object has no transformer"):
        accel.enable(object())
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 0"):
        by_name("adaspa", density=0)


def test_importing_accel_is_light() -> None:
    code = "import sys, accel, sparse_kernels; print([m for m in ('diffusers', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
