"""CogVideoX 1.0 and 1.5, ConsisID and EasyAnimate: text before the video, and torch's attention called directly."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_latents

COGVIDEOX = Adapter(
    ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
    r"transformer_blocks\.\d+\.attn1",
    from_latents("btchw", rest="before"),
    dispatched=False,
    stays="rows of text",
    latents=denoised(2),
)
EASYANIMATE = Adapter(
    ("EasyAnimateTransformer3DModel",),
    r"transformer_blocks\.\d+\.attn1",
    from_latents(rest="before"),
    dispatched=False,
    stays="rows of text",
    latents=denoised(),
)
