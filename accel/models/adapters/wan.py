"""Wan 2.1, 2.2 and what is made of their blocks: video alone in self-attention, text in cross-attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from accel.models.adapters.adapter import Adapter, Size
from accel.models.adapters.readers import denoised, from_latents, stacks

# WanPipeline.check_inputs asks for multiples of 16 even where VAE and patch would need less.
PIPELINE_MULTIPLE = 16


def latents(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the channels that are denoised: image to video appends those of its condition."""
    given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return given[:, : transformer.config.out_channels]


def channels(transformer: Any) -> int:
    """Return the channels of the hidden states."""
    return transformer.config.num_attention_heads * transformer.config.attention_head_dim


def time_embedding(transformer: Any) -> nn.Module:
    """Return what embeds timestep and text; Wan 2.2 TI2V has a timestep for each token."""
    return transformer.condition_embedder


def mlp(block: Any) -> tuple[nn.Module, nn.Module]:
    """Return the first and last layer of the MLP: only GELU is between them."""
    return block.ffn.net[0].proj, block.ffn.net[2]


def sizes(pipeline: Any) -> dict[str, Size]:
    """Return what the rotary embedding reaches and the autoencoder can make, in frames and pixels."""
    config = _config(pipeline)
    patch, longest = config.patch_size, config.rope_max_seq_len
    stride = pipeline.vae_scale_factor_temporal
    accepted = {}
    for name, side in (("height", patch[1]), ("width", patch[2])):
        token = pipeline.vae_scale_factor_spatial * side
        multiple = math.lcm(token, PIPELINE_MULTIPLE)
        accepted[name] = Size(multiple, 0, longest * token // multiple)
    # Patches of more than one latent frame shorten what n counts.
    return {"frames": Size(stride * patch[0], stride * (patch[0] - 1) + 1, longest - 1), **accepted}


def grid(pipeline: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return the tokens of a video in time, height and width."""
    patch, side = _config(pipeline).patch_size, pipeline.vae_scale_factor_spatial
    time = ((frames - 1) // pipeline.vae_scale_factor_temporal + 1) // patch[0]
    return time, height // (side * patch[1]), width // (side * patch[2])


def _config(pipeline: Any) -> Any:
    return (pipeline.transformer or pipeline.transformer_2).config


WAN = Adapter(
    ("WanTransformer3DModel",), r"blocks\.\d+\.attn1", from_latents(), sizes=sizes, grid=grid,
    blocks=stacks("blocks"), latents=latents, channels=channels, time_embedding=time_embedding, mlp=mlp,
)  # fmt: skip
WAN_RELATED = Adapter(
    ("ChronoEditTransformer3DModel", "SkyReelsV2Transformer3DModel"),
    r"blocks\.\d+\.attn1",
    from_latents(),
    blocks=stacks("blocks"),
    latents=denoised(),
)
VACE = replace(
    WAN_RELATED,
    classes=("WanVACETransformer3DModel",),
    self_attention=r"(vace_blocks|blocks)\.\d+\.attn1",
    shared=("control_hidden_states_scale",),
)
# What a face adds between blocks depends on the hidden states there: no caches of blocks.
ANIMATE = replace(WAN_RELATED, classes=("WanAnimateTransformer3DModel",), blocks=None)
ANYFLOW = Adapter(
    ("AnyFlowTransformer3DModel",),
    r"blocks\.\d+\.attn1",
    from_latents("btchw"),
    blocks=stacks("blocks"),
    latents=denoised(2),
)
