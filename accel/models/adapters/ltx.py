"""LTX-Video and LTX-2: a packed sequence of video tokens; audio and text have attention of their own."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_sizes, stacks
from accel.models.adapters.sizes import Factors

BLOCKS = r"transformer_blocks\.\d+\.attn1"

COMPRESSED = Factors("vae_temporal_compression_ratio", "vae_spatial_compression_ratio", 32)

LTX = Adapter(
    ("LTXVideoTransformer3DModel",),
    BLOCKS,
    from_sizes(),
    sizes=COMPRESSED.sizes,
    grid=COMPRESSED.grid,
    frames_per_second=25,
    blocks=stacks("transformer_blocks"),
    latents=denoised(2),
)
LTX_2 = Adapter(
    ("LTX2VideoTransformer3DModel",),
    BLOCKS,
    from_sizes(),
    stays="attention to text; all attention of audio",
    sizes=COMPRESSED.sizes,
    grid=COMPRESSED.grid,
    frames_per_second=24,
)
