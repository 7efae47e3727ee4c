"""HunyuanVideo, 1.5, Framepack and HunyuanImage: text after the video, its padding last and masked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import argument, denoised, from_latents, stacks
from accel.models.adapters.sizes import Factors
from accel.models.adapters.streams import TEXT_SECOND

BOTH_STREAMS = r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn"
# Latent frames, rows and columns that make one token of Framepack's histories (its code, clean_x_embedder).
HISTORIES = {"latents_clean": (1, 2, 2), "latents_history_2x": (2, 4, 4), "latents_history_4x": (4, 8, 8)}


def framepack(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid of a forward call, with the tokens of its histories, which stand before it."""
    grid = from_latents(rest="after")(transformer, args, kwargs)
    if grid is None:
        return None
    given = {name: argument(transformer, args, kwargs, name) for name in HISTORIES}
    tokens = [
        math.prod(-(-side // patch) for side, patch in zip(latents.shape[2:], HISTORIES[name], strict=True))
        for name, latents in given.items()
        if latents is not None
    ]
    return replace(grid, before=sum(tokens))


def hunyuan_image(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid of a picture, which is a video of one frame where it is refined."""
    latents = argument(transformer, args, kwargs, "hidden_states")
    axes = "bcthw" if getattr(latents, "ndim", 4) == 5 else "bchw"
    return from_latents(axes, rest="after")(transformer, args, kwargs)


COMPRESSED = Factors(multiple=16)

HUNYUAN_VIDEO = Adapter(
    ("HunyuanVideoTransformer3DModel",),
    BOTH_STREAMS,
    from_latents(rest="after"),
    stays="rows of text",
    sizes=COMPRESSED.sizes,
    grid=COMPRESSED.grid,
    frames_per_second=24,
    blocks=stacks("transformer_blocks", "single_transformer_blocks"),
    streams=TEXT_SECOND,
    latents=denoised(),
)
HUNYUAN_VIDEO_15 = Adapter(
    ("HunyuanVideo15Transformer3DModel",),
    r"transformer_blocks\.\d+\.attn",
    from_latents(rest="after"),
    one_mask=True,  # of all pairs of rows: gigabytes to read
    stays="rows of text",
    blocks=stacks("transformer_blocks"),
    streams=TEXT_SECOND,
    latents=denoised(),
)
FRAMEPACK = Adapter(
    ("HunyuanVideoFramepackTransformer3DModel",),
    BOTH_STREAMS,
    framepack,
    stays="rows of text and history",
    shared=("indices_latents", "indices_latents_clean", "indices_latents_history_2x", "indices_latents_history_4x"),
    blocks=stacks("transformer_blocks", "single_transformer_blocks"),
    streams=TEXT_SECOND,
    latents=denoised(),
)
HUNYUAN_IMAGE = Adapter(
    ("HunyuanImageTransformer2DModel",),
    BOTH_STREAMS,
    hunyuan_image,
    stays="rows of text",
    blocks=stacks("transformer_blocks", "single_transformer_blocks"),
    streams=TEXT_SECOND,
    latents=denoised(),
)
