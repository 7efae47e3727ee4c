"""What routers learn by: the error of the velocity, and how far from their targets blocks run and MLPs are wide.

Elastic Diffusion Transformer (E-DiT, arXiv 2602.13993), section on training. Published are the terms in probabilities.
They alone are content with gates that all lie between threshold and target, which skips nothing: each has a twin that
counts what is run, with the gradient of the probabilities.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def target_rate(timestep: Float[Tensor, " b"], high: float, low: float) -> Float[Tensor, " b"]:
    """Return the share of blocks to run, `high` at timestep 0, the end of denoising, and `low` at 1000, its start."""
    return high + (low - high) * timestep / 1000


def velocity_loss(
    velocity: Float[Tensor, "b c t h w"],
    wanted: Float[Tensor, "b c t h w"],
    weights: Float[Tensor, "b 1 t h w"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean squared error of a velocity, weighted if there are weights."""
    error = (velocity.float() - wanted).square()
    return (error if weights is None else error * weights).mean()


def gate_rate_loss(
    probabilities: Float[Tensor, "depth b"], gates: Float[Tensor, "depth b"], target: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return the squared distance from each sample's target of its blocks' mean probability, and of their mean gate."""
    rates = torch.stack([probabilities.mean(0), gates.mean(0)])
    return (rates - target).square().sum(0).mean()


def step_rate_loss(probabilities: Float[Tensor, "1 b"], target: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the squared distance of the samples' mean from the targets': one sample may run oftener than another."""
    return (probabilities.mean() - target.mean()).square()


def width_rate_loss(
    expected: Float[Tensor, "depth b"], widths: Float[Tensor, "depth b"], gates: Float[Tensor, "depth b"], target: float
) -> Float[Tensor, ""]:
    """Return the same of widths, over the blocks that run; these are counted and not taught. No block, no loss."""
    runs = gates.detach()
    count = runs.sum(0)
    means = torch.stack([(runs * width).sum(0) / count.clamp(min=1) for width in (expected, widths)])
    return ((means - target).square().sum(0) * (count > 0)).mean()
