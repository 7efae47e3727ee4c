"""LTX-Video and LTX-2: a packed sequence of video tokens; audio and text have attention of their own."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_sizes

BLOCKS = r"transformer_blocks\.\d+\.attn1"

LTX = Adapter(("LTXVideoTransformer3DModel",), BLOCKS, from_sizes(), latents=denoised(2))
LTX_2 = Adapter(
    ("LTX2VideoTransformer3DModel",), BLOCKS, from_sizes(), stays="attention to text; all attention of audio"
)
