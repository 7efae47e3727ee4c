"""One tiny real WanPipeline with random weights, for every test that needs a pipeline with text and video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from demos.shapes_wan.model import TEXT_DIM, build_text_encoder, build_tokenizer, save_pipeline
from demos.shapes_wan.train_vae import Z_DIM, build_vae


def tiny_transformer() -> WanTransformer3DModel:
    """Return a two-layer transformer with patch size 1, as shapes-wan has."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )


def tiny_pipeline() -> WanPipeline:
    """Return the pipeline in memory; its latents' mean and deviation are not 0 and 1, so decoding must normalise."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer)).eval(),
        vae=build_vae(mean=[0.3] * Z_DIM, std=[1.5] * Z_DIM).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=tiny_transformer().eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny(folder: Path, **defaults: Any) -> Path:
    """Write the pipeline's folder, with `defaults` as its generation.json if there are any."""
    torch.manual_seed(0)
    save_pipeline(folder, tiny_transformer(), build_vae(), build_text_encoder(len(build_tokenizer())))
    if defaults:
        (folder / "generation.json").write_text(json.dumps(defaults))
    return folder
