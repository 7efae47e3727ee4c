"""Kandinsky 5 and 6: video tokens alone; calls with their own NABLA mask stay as they are."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import from_latents

KANDINSKY_5 = Adapter(
    ("Kandinsky5Transformer3DModel",),
    r"visual_transformer_blocks\.\d+\.self_attention",
    from_latents("bthwc"),
    stays="attention to text; calls with a NABLA mask",
)
KANDINSKY_6 = Adapter(
    ("Kandinsky6Transformer3DModel",),
    r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention",
    from_latents("bthwc"),
    stays="attention to text; all attention of audio",
)
