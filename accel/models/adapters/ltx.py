"""LTX-Video and LTX-2: a packed sequence of video tokens; audio and text have attention of their own."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import argument, denoised, from_sizes, stacks
from accel.models.adapters.sizes import Factors
from accel.models.compiling import outside_graphs

BLOCKS = r"transformer_blocks\.\d+\.attn1"
sized, sized_before_others = from_sizes(), from_sizes(rest="after")


def ltx(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid that sizes or, where those are given, the tokens' coordinates tell.

    Key frames stand before the video, which begins at the last token in the corner of all. None where that leaves less
    than half of them, as where frames stand behind a video that come before it in time. Waits for the device.
    """
    coordinates = argument(transformer, args, kwargs, "video_coords")
    if not isinstance(coordinates, Tensor):
        return sized(transformer, args, kwargs)
    return _among_key_frames(coordinates[0].cpu())


@outside_graphs
def _among_key_frames(places: Float[Tensor, "3 n"]) -> Geometry | None:
    height, width = (len(axis.unique()) for axis in places[1:])
    corners = (places == places.amin(1, keepdim=True)).all(0).nonzero().flatten().tolist()
    before = corners[-1] if corners else places.shape[1]
    frames, left = divmod(places.shape[1] - before, height * width)
    return None if left or 2 * before >= places.shape[1] else Geometry(frames, height, width, before=before)


def ltx_2(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid that sizes or, where there are none, the tokens' coordinates tell; other rows are behind it.

    Waits for the device where coordinates tell.
    """
    told = sized_before_others(transformer, args, kwargs)
    coordinates = argument(transformer, args, kwargs, "video_coords")
    if told is not None or not isinstance(coordinates, Tensor) or coordinates.ndim != 4:
        return told
    grid = leading_grid(coordinates[0].cpu())
    return None if grid is None else Geometry(*grid, rest="after")


@outside_graphs
def leading_grid(places: Float[Tensor, "3 n 2"]) -> tuple[int, int, int] | None:
    """Return frames, rows and columns of the first tokens that stand row by row, in frames that follow on each other.

    A token's place is where it starts and stops in time, height and width. A key frame that stands behind the video
    starts where no frame of it stops.
    """
    starts, stops = places.unbind(-1)
    at_first = (starts[1:] == starts[1:, :1]).all(0).nonzero().flatten().tolist()
    frame = at_first[1] if len(at_first) > 1 else starts.shape[1]
    columns = int((starts[1, :frame] == starts[1, 0]).sum())
    if frame % columns:
        return None
    t, y, x = starts[:, :frame].reshape(3, -1, columns)
    in_rows = (y == y[:, :1]).all() & (x == x[:1]).all() & (t == t[0, 0]).all()
    if not bool(in_rows & (y[:, 0].diff() > 0).all() & (x[0].diff() > 0).all()):
        return None
    count = starts.shape[1] // frame
    starts, stops = (side[:, : count * frame].reshape(3, count, frame) for side in (starts, stops))
    alike = (starts[1:, 1:] == starts[1:, :1]).all(2).all(0)
    follows = (starts[0, 1:] == stops[0, :-1, :1]).all(1)
    return 1 + int((alike & follows).int().cumprod(0).sum()), frame // columns, columns


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
    ltx_2,
    one_mask=True,  # of all pairs of rows and all heads, where the model is given one
    stays="attention to text; all attention of audio; rows of key frames",
    sizes=COMPRESSED.sizes,
    grid=COMPRESSED.grid,
    frames_per_second=24,
)
