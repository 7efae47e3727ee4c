"""Wan 2.1 (text and image to video) and 2.2: self-attention over video tokens alone, text in cross-attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from accel.attention.call import Geometry

CLASSES = ("WanTransformer3DModel",)


def self_attention(transformer: nn.Module) -> dict[str, nn.Module]:
    """Return the self-attention modules by name, in the order of the layers."""
    blocks: Any = transformer.blocks
    return {f"blocks.{index}.attn1": block.attn1 for index, block in enumerate(blocks)}


def geometry(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the token grid of a forward call on latents (batch channels frames height width)."""
    latents = kwargs.get("hidden_states", args[0] if args else None)
    if not isinstance(latents, Tensor) or latents.ndim != 5:
        return None
    config: Any = transformer.config
    frames, height, width = (n // patch for n, patch in zip(latents.shape[2:], config.patch_size, strict=True))
    return Geometry(frames, height, width)
