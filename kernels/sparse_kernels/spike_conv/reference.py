"""The definition of event-driven convolution: torch only, any device and floating type, one step after the other."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def can_run(spikes: Tensor, weight: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


def accumulate(
    spikes: Shaped[Tensor, "steps n c_in"],
    weight: Float[Tensor, "slots c_in c_out"],
    kernel_map: Int[Tensor, "slots m"],
) -> Float[Tensor, "m c_out"]:
    """Add, for every pair of rows and every channel that fired in a step, that channel's row of weights.

    Of bytes it is added as often as they say.
    """
    if spikes.dtype != torch.uint8 and not ((spikes == 0) | (spikes == 1)).all():
        raise ValueError("spikes must be 0 or 1, and these hold other values: give what a spiking neuron sends")
    if kernel_map.numel() and kernel_map.amax() >= spikes.shape[1]:
        raise ValueError(f"the kernel map must name input rows 0 to {spikes.shape[1] - 1}, or -1; it names others")
    wide = weight if weight.dtype == torch.float64 else weight.float()
    out = wide.new_zeros(kernel_map.shape[1], weight.shape[2])
    for step in spikes:
        for slot, rows in enumerate(kernel_map.long()):
            there = (rows >= 0).nonzero().flatten()
            pairs, channels = step[rows[there]].nonzero(as_tuple=True)
            times = step[rows[there[pairs]], channels].to(wide.dtype)
            out.index_add_(0, there[pairs], wide[slot][channels] * times[:, None])
    return out.to(weight.dtype)
