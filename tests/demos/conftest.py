from __future__ import annotations

import json
from pathlib import Path

import pytest

DEFAULTS = {"num_frames": 5, "height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 1.0}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WanPipeline folder of random weights, which makes 5 frames of 64x64 in a moment."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from demos.shapes_wan.model import TEXT_DIM, build_text_encoder, build_tokenizer, save_pipeline

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * 4,
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_pipeline(folder, transformer, vae, build_text_encoder(len(build_tokenizer())))
    (folder / "generation.json").write_text(json.dumps({**DEFAULTS, "max_sequence_length": 24}))
    return folder
