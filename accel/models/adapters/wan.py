"""Wan 2.1 (text and image to video) and 2.2: self-attention over video tokens alone, text in cross-attention."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter, Size

# WanPipeline.check_inputs asks for multiples of 16 even where VAE and patch would need less.
PIPELINE_MULTIPLE = 16


def self_attention(transformer: Any) -> dict[str, nn.Module]:
    """Return the self-attention modules by name, in the order of the layers."""
    return {f"blocks.{index}.attn1": block.attn1 for index, block in enumerate(transformer.blocks)}


def geometry(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the token grid of a forward call on latents (batch channels frames height width)."""
    latents = kwargs.get("hidden_states", args[0] if args else None)
    if not isinstance(latents, Tensor) or latents.ndim != 5:
        return None
    patch = transformer.config.patch_size
    return Geometry(*(n // size for n, size in zip(latents.shape[2:], patch, strict=True)))


def blocks(transformer: Any) -> list[nn.Module]:
    """Return the blocks in the order in which they run."""
    return list(transformer.blocks)


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
    ("WanTransformer3DModel",), self_attention, geometry, sizes, grid,
    blocks=blocks, latents=latents, channels=channels, time_embedding=time_embedding, mlp=mlp,
)  # fmt: skip
