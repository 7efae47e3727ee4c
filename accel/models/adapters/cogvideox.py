"""CogVideoX 1.0 and 1.5, ConsisID and EasyAnimate: text before the video, and torch's attention called directly."""

from __future__ import annotations

from dataclasses import replace

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_latents, stacks
from accel.models.adapters.streams import TEXT_SECOND

COGVIDEOX = Adapter(
    ("CogVideoXTransformer3DModel",),
    r"transformer_blocks\.\d+\.attn1",
    from_latents("btchw", rest="before"),
    dispatched=False,
    stays="rows of text",
    blocks=stacks("transformer_blocks"),
    streams=TEXT_SECOND,
    latents=denoised(2),
)
# What a face adds between blocks depends on the hidden states there: no caches of blocks.
CONSISID = replace(COGVIDEOX, classes=("ConsisIDTransformer3DModel",), blocks=None)
EASYANIMATE = Adapter(
    ("EasyAnimateTransformer3DModel",),
    r"transformer_blocks\.\d+\.attn1",
    from_latents(rest="before"),
    dispatched=False,
    stays="rows of text",
    blocks=stacks("transformer_blocks"),
    streams=TEXT_SECOND,
    latents=denoised(),
)
