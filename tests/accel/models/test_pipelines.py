"""Real pipelines of other families than Wan, with tiny transformers and embeddings instead of text encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import accel
from accel.models.adapters import adapter_for
from tests.accel.models.loops import difference, processors
from tests.accel.models.tiny_models import TINY, L

STEPS = 4
Make = Callable[[], tuple[Any, dict[str, Any]]]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def euler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def cogvideox() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.CogVideoXPipeline(
        None, None, None, TINY["cogvideox-2b"].build(), diffusers.CogVideoXDDIMScheduler()
    )
    return pipe, dict(
        prompt_embeds=rand(1, L, 32), negative_prompt_embeds=rand(1, L, 32), height=64, width=96, num_frames=9,
        guidance_scale=3.0, max_sequence_length=L,
    )  # fmt: skip


def ltx() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.LTXPipeline(euler(), None, None, None, TINY["ltx"].build())
    mask = torch.ones(1, L)
    return pipe, dict(
        prompt_embeds=rand(1, L, 32), prompt_attention_mask=mask, negative_prompt_embeds=rand(1, L, 32),
        negative_prompt_attention_mask=mask, height=128, width=192, num_frames=17, guidance_scale=3.0,
    )  # fmt: skip


def hunyuan_video() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.HunyuanVideoPipeline(None, None, TINY["hunyuan-video"].build(), None, euler(), None, None)
    mask = torch.ones(1, L, dtype=torch.long)
    mask[:, 6:] = 0
    width = TINY["hunyuan-video"].kwargs["text_embed_dim"]
    pooled = TINY["hunyuan-video"].kwargs["pooled_projection_dim"]
    return pipe, dict(
        prompt_embeds=rand(1, L, width), prompt_attention_mask=mask, pooled_prompt_embeds=rand(1, pooled),
        negative_prompt_embeds=rand(1, L, width), negative_prompt_attention_mask=mask,
        negative_pooled_prompt_embeds=rand(1, pooled), true_cfg_scale=2.0, height=64, width=96, num_frames=9,
    )  # fmt: skip


def mochi() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.MochiPipeline(euler(), None, None, None, TINY["mochi"].build())
    mask = torch.ones(1, L, dtype=torch.bool)
    mask[:, 7:] = False
    return pipe, dict(
        prompt_embeds=rand(1, L, 32), prompt_attention_mask=mask, negative_prompt_embeds=rand(1, L, 32),
        negative_prompt_attention_mask=torch.ones(1, L, dtype=torch.bool), height=64, width=96, num_frames=13,
        guidance_scale=3.0,
    )  # fmt: skip


def flux() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.FluxPipeline(euler(), None, None, None, None, None, TINY["flux"].build())
    return pipe, dict(
        prompt_embeds=rand(1, L, 32), pooled_prompt_embeds=rand(1, 32), height=64, width=96, guidance_scale=3.0
    )


@pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported")
@pytest.mark.parametrize("make", [cogvideox, ltx, hunyuan_video, mochi, flux])
def test_a_real_pipeline(make: Make) -> None:
    pipe, given = make()
    pipe.set_progress_bar_config(disable=True)

    def generate(**changed: Any) -> list[Tensor]:
        noise = torch.Generator().manual_seed(0)
        output = pipe(**(given | changed), num_inference_steps=STEPS, generator=noise, output_type="latent")
        return [output[0]]

    stock, before = generate(), processors(pipe.transformer)
    with accel.enabled(pipe, "full", block=16) as handle:
        assert difference(generate(), stock) < 1e-5
        assert {record.step for record in handle.stats()} == set(range(STEPS))
        assert {record.steps for record in handle.stats()} == {STEPS}
        _check_sizes(pipe, given, handle)
    with accel.enabled(pipe, "svg-ear", density=0.4, dense_steps=0.25, query_clusters=4, key_clusters=8) as handle:
        first = generate()
        assert {record.kind for record in handle.stats()} == {"dense", "sparse"} and handle.memory_bytes() == 0
        branches = {record.branch for record in handle.stats()}
        generate(height=128)
        assert difference(generate(), first) == 0 and difference(first, stock) > 1e-4
    assert len(branches) == (1 if make in (cogvideox, mochi, ltx, flux) else 2)
    assert processors(pipe.transformer) == before and difference(generate(), stock) == 0


@pytest.mark.parametrize("make", [hunyuan_video, flux])
def test_steps_whose_timesteps_round_to_one_number_are_told_apart(make: Make) -> None:
    pipe, given = make()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=25.0)  # as Flux has it for large pictures
    pipe.to(torch.bfloat16)
    given = {name: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()}
    with accel.enabled(pipe, "full", block=16) as handle:
        for _ in range(2):
            pipe(**given, num_inference_steps=30, output_type="latent")
            assert len(pipe.scheduler.timesteps.bfloat16().unique()) < 30
            calls = [record for record in handle.stats() if record.layer == 0]
            assert [call.step for call in calls if call.branch == calls[0].branch] == list(range(30))


def _check_sizes(pipe: Any, given: dict[str, Any], handle: accel.Handle) -> None:
    """What the command line is told of sizes is what the pipeline does with them."""
    adapter = adapter_for(pipe.transformer)
    if adapter.sizes is None or adapter.grid is None:
        return
    video = given["num_frames"], given["height"], given["width"]
    assert handle.geometry is not None and adapter.grid(pipe, *video) == handle.geometry.grid
    for size, value in zip(adapter.sizes(pipe).values(), video, strict=True):
        assert size.accepts(value) and not size.accepts(value + 1)
        assert size.nearest(value + 1) == [value, value + size.multiple]
