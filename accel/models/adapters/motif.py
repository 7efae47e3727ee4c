"""Motif-Video: text after the video, its padding masked."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_latents

MOTIF = Adapter(
    ("MotifVideoTransformer3DModel",),
    r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn",
    from_latents(rest="after"),
    stays="rows of text",
    latents=denoised(),
)
