"""MiniMax-H3: text, video and audio in one sequence, in the order in which the caller packs them."""

from __future__ import annotations

from typing import Any

import torch

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter, Size
from accel.models.adapters.readers import argument
from accel.models.adapters.sizes import MOST
from accel.models.compiling import outside_graphs


@outside_graphs
def geometry(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid that the video's positions span, None where it does not stand together, frame by frame.

    Waits for the device.
    """
    rows, positions = (argument(transformer, args, kwargs, name) for name in ("video_indices", "position_ids"))
    if rows is None or positions is None or len(rows) == 0:
        return None
    rows, places = rows.cpu(), positions[rows].cpu()
    values = [axis.unique(return_inverse=True) for axis in places.T]
    t, y, x = (len(different) for different, _ in values)
    number = (values[0][1] * y + values[1][1]) * x + values[2][1]
    together = bool((rows.diff() == 1).all() and (number.diff() == 1).all())
    return Geometry(t, y, x, before=int(rows[0]), rest="after") if together and t * y * x == len(rows) else None


def sizes(pipeline: Any) -> dict[str, Size]:
    """Return the frames of whole chunks, within the seconds that the model makes, and heights and widths in pixels."""
    chunk, rest, multiple = pipeline.vae_frames_per_chunk, pipeline.vae_latents_per_chunk, pipeline.canvas_multiple
    least, most = (round(seconds * pipeline.fps) for seconds in (pipeline.min_duration, pipeline.max_duration))
    frames = Size(chunk, rest, (most - rest) // chunk, least=-(-(least - rest) // chunk))
    return {"frames": frames, "height": Size(multiple, 0, MOST), "width": Size(multiple, 0, MOST)}


def grid(pipeline: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return the tokens of a video in time, height and width: a chunk and what is over it have latent frames each."""
    chunk, rest, multiple = pipeline.vae_frames_per_chunk, pipeline.vae_latents_per_chunk, pipeline.canvas_multiple
    return (frames - rest) // chunk * rest + 2, height // multiple, width // multiple


# Its timesteps rise to 1, which is clean; sound and pictures to start from are ahead of the video.
MINIMAX_H3 = Adapter(
    ("MiniMaxH3Transformer3DModel",),
    r"transformer_blocks\.\d+\.attn",
    geometry,
    noisiest=torch.min,
    stays="rows of text and audio",
    sizes=sizes,
    grid=grid,
    options=("num_frames", "height", "width", "num_inference_steps"),
    frames_per_second=24,
)
