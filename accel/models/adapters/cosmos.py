"""Cosmos 1, 2 and 2.5: video tokens alone, through a dispatcher that is given no backend of the processor's own."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_latents, stacks

COSMOS = Adapter(
    ("CosmosTransformer3DModel",),
    r"transformer_blocks\.\d+\.attn1",
    from_latents(),
    dispatched=False,
    blocks=stacks("transformer_blocks"),
    latents=denoised(),
)
