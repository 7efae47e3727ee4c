"""LTX-Video and LTX-2: a packed sequence of video tokens; audio and text have attention of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import argument, denoised, from_sizes, stacks
from accel.models.adapters.sizes import Factors

BLOCKS = r"transformer_blocks\.\d+\.attn1"


def ltx(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid that sizes or, where those are given, the tokens' coordinates tell.

    Key frames stand before the video, which begins at the last token in the corner of all. None where that leaves less
    than half of them, as where frames stand behind a video that come before it in time. Waits for the device.
    """
    coordinates = argument(transformer, args, kwargs, "video_coords")
    if not isinstance(coordinates, Tensor):
        return from_sizes()(transformer, args, kwargs)
    places = coordinates[0].cpu()
    height, width = (len(axis.unique()) for axis in places[1:])
    corners = (places == places.amin(1, keepdim=True)).all(0).nonzero().flatten().tolist()
    before = corners[-1] if corners else places.shape[1]
    frames, left = divmod(places.shape[1] - before, height * width)
    return None if left or 2 * before >= places.shape[1] else Geometry(frames, height, width, before=before)


COMPRESSED = Factors("vae_temporal_compression_ratio", "vae_spatial_compression_ratio", 32)

LTX = Adapter(
    ("LTXVideoTransformer3DModel",),
    BLOCKS,
    ltx,
    stays="attention to text; rows of key frames",
    sizes=COMPRESSED.sizes,
    grid=COMPRESSED.grid,
    frames_per_second=25,
    blocks=stacks("transformer_blocks"),
    latents=denoised(2),
)
LTX_2 = Adapter(
    ("LTX2VideoTransformer3DModel",),
    BLOCKS,
    from_sizes(rest="after"),
    stays="attention to text; all attention of audio; rows of key frames",
    sizes=COMPRESSED.sizes,
    grid=COMPRESSED.grid,
    frames_per_second=24,
)
