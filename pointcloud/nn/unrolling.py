"""Networks that train on integers and run on spikes of 0 and 1: the same sums, one spike at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointcloud.nn.neurons import MOST_BUNDLED, IntegerLIF, Rectified

if TYPE_CHECKING:  # networks of neurons and linear maps need no spconv
    from spconv.pytorch.core import SparseConvTensor

Network = TypeVar("Network", bound=nn.Module)


class SpikingLayer(nn.Module):
    """A neuron, and the linear layer that reads its spikes: a linear map or a convolution, dense or of spconv.

    The layer must be linear but for parameters named `bias`, which count once. It gets integers, or after `unroll` the
    spikes of 0 and 1 that add up to them, and what it makes of them is added up: convolutions of ours take a step's
    spikes in one event-driven call, other layers get each in a call of its own. With `Rectified` for a neuron nothing
    spikes. Where no step follows another (`stateful` is False) nothing is kept, and None returned for the potential.
    """

    def __init__(self, neuron: IntegerLIF | Rectified, layer: nn.Module, stateful: bool = True) -> None:
        super().__init__()
        self.neuron, self.layer, self.stateful = neuron, layer, stateful
        self.unrolled = self.bundled = False

    def forward(
        self, current: Tensor | SparseConvTensor, membrane: Float[Tensor, "*shape"] | None = None
    ) -> tuple[Any, Float[Tensor, "*shape"] | None]:
        """Return what the layer makes of a step's spikes, of the kind of `current`, and the potential after the step.

        Of a SparseConvTensor the features are the current.
        """
        features = _features(current)
        if not self.unrolled or isinstance(self.neuron, Rectified):
            counts, after = self.neuron(features, membrane, self.stateful)
            return self.layer(_with_features(current, counts)), after if self.stateful else None
        if not isinstance(current, Tensor):
            from pointcloud.nn.convolution import takes_steps

            if takes_steps(self.layer, features):
                return self._send_together(current, membrane)
        steps, after = self.neuron.spikes(features, membrane)
        out = self.layer(_with_features(current, steps[0]))
        total, without_bias = _features(out), _zero_biases(self.layer)
        for spikes in steps[1:]:
            more = torch.func.functional_call(self.layer, without_bias, (_with_features(current, spikes),))
            _check_same_rows(out, more)
            total = total + _features(more)
        return _with_features(out, total), after if self.stateful else None

    def _send_together(self, current: SparseConvTensor, membrane: Tensor | None) -> tuple[Any, Tensor | None]:
        """Return the same from a layer that takes all spikes of a step at once."""
        from pointcloud.nn.convolution import with_steps

        features, neuron = current.features, self.neuron
        assert isinstance(neuron, IntegerLIF)
        if features.requires_grad and torch.is_grad_enabled():
            spikes, after = neuron.spikes(features, membrane)
            return self.layer(with_steps(current, spikes)), after if self.stateful else None
        if self.bundled and neuron.levels <= MOST_BUNDLED:
            counts, after = neuron.bundle(features, membrane, self.stateful)
            return self.layer(current.replace_feature(counts)), after
        spikes, after = neuron.fired(features, membrane, self.stateful)
        return self.layer(with_steps(current, spikes)), after


class IntegerNeurons(nn.Module):
    """Neurons of one step whose spikes are added or pooled before a layer reads them.

    They send integers or, after `unroll`, `levels` steps of 0 and 1 along the first axis: those of a neuron begin all
    at once, so that the largest of integers is the largest in each step. Who reads them adds up what it makes of steps.
    A maximum shares its gradient among equals, of which steps have more: train on integers.
    """

    def __init__(self, neuron: IntegerLIF) -> None:
        super().__init__()
        self.neuron, self.unrolled, self.bundled = neuron, False, False

    def forward(self, current: Float[Tensor, " one *places"]) -> Float[Tensor, " steps *places"]:
        """Return what the neurons send from rest on."""
        if not self.unrolled:
            return self.neuron(current, None, False)[0]
        return self.neuron.spikes(current[0])[0]


def unroll(network: Network, unrolled: bool = True, bundled: bool = False) -> Network:
    """Let every SpikingLayer and IntegerNeurons of `network` send spikes of 0 and 1, or integers again.

    A step of the network becomes `levels` steps of each neuron, T steps T x levels; outputs, states and gradients stay
    the same to rounding. Done in place and returned: parameters, hooks and names stay. With `bundled`, sparse
    convolutions get the spikes that arrive together as their number, one byte, where no gradient is asked for and the
    neurons have at most 255 levels.
    ValueError if the network has neither of them with neurons that spike.
    """
    layers = [module for module in network.modules() if isinstance(module, SpikingLayer | IntegerNeurons)]
    if not any(isinstance(layer.neuron, IntegerLIF) for layer in layers):
        raise ValueError(
            f"{type(network).__name__} has no SpikingLayer to unroll, with an IntegerLIF for a neuron; put those there"
        )
    for layer in layers:
        layer.unrolled, layer.bundled = unrolled, bundled
    return network


def _zero_biases(layer: nn.Module) -> dict[str, Tensor]:
    parameters = layer.named_parameters()
    return {name: torch.zeros_like(x) for name, x in parameters if name.rpartition(".")[2] == "bias"}


def _check_same_rows(out: Any, more: Any) -> None:
    if not isinstance(out, Tensor) and not torch.equal(out.indices, more.indices):
        raise RuntimeError("the layer orders its rows anew in every call: put pointcloud.nn's layers there")


def _features(x: Tensor | SparseConvTensor) -> Tensor:
    return x if isinstance(x, Tensor) else x.features


def _with_features(x: Tensor | SparseConvTensor, features: Tensor) -> Tensor | SparseConvTensor:
    return features if isinstance(x, Tensor) else x.replace_feature(features)
