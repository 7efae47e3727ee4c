"""Mochi, Allegro and Latte: torch's attention called directly, by classes without `set_attn_processor`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import denoised, from_latents, stacks
from accel.models.adapters.streams import TEXT_SECOND

BLOCKS = r"transformer_blocks\.\d+\.attn1"


def single_frames(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid of one frame: Latte's blocks see every frame by itself, and the other half of them one place."""
    grid = from_latents()(transformer, args, kwargs)
    return None if grid is None else replace(grid, frames=1)


# One call a sample, with its valid text after the video.
MOCHI = Adapter(
    ("MochiTransformer3DModel",),
    BLOCKS,
    from_latents(rest="after"),
    dispatched=False,
    stays="rows of text",
    blocks=stacks("transformer_blocks"),
    streams=TEXT_SECOND,
    latents=denoised(),
)
ALLEGRO = Adapter(
    ("AllegroTransformer3DModel",),
    BLOCKS,
    from_latents(),
    dispatched=False,
    blocks=stacks("transformer_blocks"),
    latents=denoised(),
)
LATTE = Adapter(
    ("LatteTransformer3DModel",),
    BLOCKS,
    single_frames,
    dispatched=False,
    stays="attention to text and over time",
)
