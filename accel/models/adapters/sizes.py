"""The sizes of videos, and their tokens, by the factors of an autoencoder and the sides of a patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from accel.models.adapters.adapter import Size
from accel.models.adapters.readers import patch_of

MOST = 2**16  # tokens on one side: such models have no table that ends


@dataclass(frozen=True)
class Factors:
    """How much shorter and smaller latents are; the pipeline has these under `time` and `space`.

    Pipelines check that height and width are multiples of `multiple` as well.
    """

    time: str = "vae_scale_factor_temporal"
    space: str = "vae_scale_factor_spatial"
    multiple: int = 1

    def sizes(self, pipeline: Any) -> dict[str, Size]:
        """Return the accepted frames, and heights and widths in pixels."""
        patch, stride = patch_of(pipeline.transformer.config), getattr(pipeline, self.time)
        sides = [math.lcm(getattr(pipeline, self.space) * side, self.multiple) for side in patch[1:]]
        frames = Size(stride * patch[0], stride * (patch[0] - 1) + 1, MOST)
        return {"frames": frames, "height": Size(sides[0], 0, MOST), "width": Size(sides[1], 0, MOST)}

    def grid(self, pipeline: Any, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the tokens of a video in time, height and width."""
        patch, side = patch_of(pipeline.transformer.config), getattr(pipeline, self.space)
        time = ((frames - 1) // getattr(pipeline, self.time) + 1) // patch[0]
        return time, height // (side * patch[1]), width // (side * patch[2])
