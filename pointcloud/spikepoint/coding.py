"""From values to spikes over time. Values that lie outside of 0 to 1 are taken as 0 or 1: a rate can be no more."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rate_code(
    values: Float[Tensor, "*shape"], steps: int, generator: torch.Generator | None = None
) -> Float[Tensor, " steps *shape"]:
    """Return spikes, each fired by chance at its value's rate and by itself (SpikePoint, section 3.2)."""
    drawn = torch.rand(steps, *values.shape, generator=generator, dtype=values.dtype, device=values.device)
    return (drawn < values).to(values.dtype)


def latency_code(values: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, " steps *shape"]:
    """Return one spike for each value, the sooner the higher: 1 in the first step, what is above 0 by the last one."""
    when = ((1 - values.clamp(0, 1)) * steps).floor()
    step = torch.arange(steps, device=values.device).view(-1, *[1] * values.ndim)
    return (when == step).to(values.dtype)


def direct_code(values: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, " steps *shape"]:
    """Return the values themselves in every step; the first layer multiplies then, where it would only add."""
    return values.expand(steps, *values.shape)
