"""Spikes and what stands in for their derivative, which is zero wherever it exists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

Surrogate = Callable[[Tensor], Tensor]  # how far a potential is above its threshold -> the derivative to take there


def arctangent(distance: Float[Tensor, "*shape"], slope: float = 2.0) -> Float[Tensor, "*shape"]:
    """Return the derivative of arctan(pi / 2 slope x) / pi (Fang et al., PLIF, arXiv 2007.05785, section 3.4)."""
    return slope / 2 / (1 + (math.pi / 2 * slope * distance).square())


def rectangular(distance: Float[Tensor, "*shape"], width: float = 1.0) -> Float[Tensor, "*shape"]:
    """Return 1 / width in a window of that width around the threshold, else 0 (Wu et al., STBP, arXiv 1706.02609)."""
    return (distance.abs() < width / 2).to(distance.dtype) / width


def sigmoid(distance: Float[Tensor, "*shape"], slope: float = 4.0) -> Float[Tensor, "*shape"]:
    """Return the derivative of 1 / (1 + exp(-slope x)) (Neftci et al., arXiv 1901.09948)."""
    value = torch.sigmoid(slope * distance)
    return slope * value * (1 - value)


def fire(distance: Float[Tensor, "*shape"], surrogate: Surrogate = arctangent) -> Float[Tensor, "*shape"]:
    """Return 1 where the potential has reached its threshold (`distance` >= 0), else 0, with a surrogate's gradient."""
    return _Fire.apply(distance, surrogate)


@no_type_check  # a compiler follows an autograd function into its own code, not into a check around it
class _Fire(torch.autograd.Function):
    """A step, whose derivative is a surrogate's."""

    @staticmethod
    def forward(distance: Tensor, surrogate: Surrogate) -> Tensor:
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.surrogate = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (distance,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate(distance), None
