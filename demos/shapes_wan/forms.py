"""Let the loss look where forms differ: a few tokens in a hundred tell a circle from a square."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from demos.shapes_wan.scenes import SHAPES, Scene, covers, parse_caption

FINE = 4  # pixels a token and axis, when covers are drawn


class _Middle(random.Random):
    """Draws the middle of every range: the place around which places are random."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def form_weights(
    captions: list[str], times: Float[Tensor, " frames"], height: int, width: int, share: float
) -> Float[Tensor, "batch 1 frames height width"]:
    """Return each token's weight in the loss, 1 on average; `share` of it lies where another shape would change tokens.

    Every actor of a video has the same part of `share`, so that small ones count as much as large ones. `times` are
    in [0, 1]. The weights follow from the caption alone, so that what minimises the loss stays the same; an empty
    caption has the same weight everywhere.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}, but it is a part of the loss: 0 to below 1")
    weights = torch.ones(len(captions), 1, len(times), height, width)
    for weight, caption in zip(weights, captions, strict=True):
        if caption:
            differs = _disagreement(parse_caption(caption), times, height, width)
            differs /= differs.mean((1, 2, 3), keepdim=True)
            weight[0] += share * (differs.mean(0) - 1)
    return weights


def _disagreement(scene: Scene, times: Tensor, height: int, width: int) -> Float[Tensor, "actors frames height width"]:
    """Return how much of each token is covered by one shape and not by another, for each actor."""
    drawn = torch.stack(
        [
            covers(
                replace(scene, actors=tuple(replace(actor, shape=shape) for actor in scene.actors)),
                times.numpy(),
                FINE * height,
                FINE * width,
                _Middle(),
            )
            for shape in SHAPES
        ]
    )
    return adaptive_avg_pool2d(drawn.amax(0) - drawn.amin(0), (height, width))
