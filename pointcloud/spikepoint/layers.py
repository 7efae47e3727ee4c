"""Layers of a SpikePoint over all steps: a linear map of every point, a norm, neurons; and the residual blocks."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pointcloud.nn import LIF, PLIF, IntegerLIF, IntegerNeurons, surrogates
from pointcloud.nn.neurons import run_steps
from pointcloud.spikepoint.config import SpikePointConfig


class Neurons(nn.Module):
    """A neuron of `pointcloud.nn` at every place, from rest on over all steps."""

    def __init__(self, neuron: LIF | PLIF) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, current: Float[Tensor, " steps *places"]) -> Float[Tensor, " steps *places"]:
        """Return spikes, 0 or 1."""
        return run_steps(self.neuron, current)


class Layer(nn.Module):
    """A linear map (a convolution with kernel 1), batch normalisation over steps and places, neurons or ReLU."""

    def __init__(self, channels: int, out_channels: int, config: SpikePointConfig, learned_leak: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, out_channels)
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = make_activation(config, learned_leak)
        self.steps = config.coded_steps

    def forward(self, x: Float[Tensor, "steps *places channels"]) -> Float[Tensor, "sent *places out_channels"]:
        """Return spikes, or without spiking values of 0 or more; integers that are spikes take more steps than one."""
        together = len(x) // self.steps
        x = self.linear(x)
        if together > 1:  # spikes that make an integer: what they bring is added up, the bias counts once
            x = x.unflatten(0, (self.steps, together)).sum(1) - (together - 1) * self.linear.bias
        return self.activation(self.norm(x.flatten(0, -2)).view_as(x))


class Residual(nn.Module):
    """Layers beside an identity, added after the neurons, so that gradients pass them by (SpikePoint, section 3.3).

    What comes out are counts of spikes that arrive together. One full-width layer is the global block, two over half of
    the channels the local one; the published counts of parameters tell so.
    """

    def __init__(self, channels: int, config: SpikePointConfig, bottleneck: bool = False) -> None:
        super().__init__()
        widths = (channels, channels // 2, channels) if bottleneck else (channels, channels)
        self.layers = nn.Sequential(*(Layer(*pair, config) for pair in zip(widths, widths[1:], strict=False)))

    def forward(self, x: Float[Tensor, "steps *places channels"]) -> Float[Tensor, "steps *places channels"]:
        """Return the layers' spikes added to those that came in."""
        return x + self.layers(x)


def make_activation(config: SpikePointConfig, learned_leak: bool) -> nn.Module:
    """Return neurons with a decay of 0.5 (for PLIF at the start), threshold 1 and a hard reset; ReLU if not spiking."""
    if not config.spiking:
        return nn.ReLU()
    if config.neuron == "integer":
        return IntegerNeurons(IntegerLIF(config.steps))
    kind = PLIF if config.neuron == "plif" and learned_leak else LIF
    return Neurons(kind(0.5, 1.0, "hard", getattr(surrogates, config.surrogate)))
