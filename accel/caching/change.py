"""How far tensors moved, without waiting for the device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mean_size(x: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean of absolute values, in float32 or better."""
    return x.abs().mean(dtype=torch.promote_types(x.dtype, torch.float32))


def mean_change(x: Float[Tensor, "*shape"], before: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference; that of two half-precision tensors is rounded once."""
    return mean_size(x - before)


def relative_change(x: Float[Tensor, "*shape"], before: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference over the mean absolute value of before."""
    return mean_change(x, before) / mean_size(before)
