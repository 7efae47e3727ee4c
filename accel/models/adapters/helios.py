"""Helios: coarse tokens of its history before the video."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_latents, stacks

HELIOS = Adapter(
    ("HeliosTransformer3DModel",),
    r"blocks\.\d+\.attn1",
    from_latents(rest="before"),
    stays="attention to text; rows of history",
    blocks=stacks("blocks"),
    latents=denoised(),
)
