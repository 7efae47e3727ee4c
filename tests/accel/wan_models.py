"""Tiny real Wan pipelines with random weights, and how to run them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

STEPS = 5


def transformer(seed: int, channels: int = 16) -> WanTransformer3DModel:
    """Return a two-layer transformer; patch (1, 2, 2) as the real ones have."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=channels,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    ).eval()


def vae() -> AutoencoderKLWan:
    """Return an autoencoder with the factors of the real one: 4 in time, 8 in space."""
    torch.manual_seed(9)
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1] * 4, num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def pipeline(kind: str) -> Any:
    """Return the pipeline of a model family: wan-2.1, wan-2.2 (two transformers) or wan-2.1-i2v."""
    parts: dict[str, Any] = dict(
        tokenizer=None, text_encoder=None, vae=vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)
    )
    if kind == "wan-2.1-i2v":
        pipe = WanImageToVideoPipeline(
            **parts, transformer=transformer(0, channels=36), image_encoder=None, image_processor=None
        )
    elif kind == "wan-2.2":
        pipe = WanPipeline(**parts, transformer=transformer(0), transformer_2=transformer(1), boundary_ratio=0.875)
    else:
        pipe = WanPipeline(**parts, transformer=transformer(0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(seed: int, count: int = 1) -> Tensor:
    """Return prompt embeddings (count 16 32)."""
    return torch.randn(count, 16, 32, generator=torch.Generator().manual_seed(seed))


@functools.cache
def stock_of(kind: str) -> Tensor:
    """Return what a pipeline of this kind generates with nothing attached."""
    return generate(pipeline(kind))


def generate(
    pipe: Any, *, height: int = 64, guidance: float = 3.0, seeds: tuple[int, ...] = (0,), **more: Any
) -> Tensor:
    """Return the latents of a short generation, one video a seed."""
    if isinstance(pipe, WanImageToVideoPipeline):
        more["image"] = torch.linspace(0, 1, 3 * height * 64).view(1, 3, height, 64)
    return pipe(
        prompt_embeds=torch.cat([embeddings(10 + seed) for seed in seeds]),
        negative_prompt_embeds=torch.cat([embeddings(99) for _ in seeds]),
        height=height,
        width=64,
        num_frames=17,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **more,
    ).frames
