"""MiniMax-H3: text, video and audio in one sequence, in the order in which the caller packs them."""

from __future__ import annotations

from typing import Any

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import argument


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


MINIMAX_H3 = Adapter(
    ("MiniMaxH3Transformer3DModel",), r"transformer_blocks\.\d+\.attn", geometry, stays="rows of text and audio"
)
