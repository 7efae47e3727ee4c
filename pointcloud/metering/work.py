"""What a call of a layer computes, and what of it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pointcloud.metering.pairs import pairs_and_channels
from pointcloud.metering.record import Part
from pointcloud.nn import LIF, PLIF, IntegerLIF, IntegerNeurons, SpikingLayer

MOST_SPIKES = 16  # whole numbers up to it are spikes that arrive together, beyond it values that happen to be whole
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@runtime_checkable
class CodesInput(Protocol):
    """A layer that turns an input into spikes; a network's own, which tells what that takes."""

    def coding_work(self, values: Any, coded: Any) -> tuple[float, float]:
        """Return additions and multiplications of a call."""
        ...


@dataclass
class Work:
    """One call of a layer; `fired` counts spikes among `inputs`, None where values were read."""

    part: Part
    additions: float = 0.0
    multiplications: float = 0.0
    pairs: int = 0
    dense: int = 0
    reads: Literal["spikes", "values", ""] = ""
    fired: float = 0.0
    inputs: int = 0
    note: str = ""


def work_of(layer: nn.Module, given: tuple[Any, ...], out: Any) -> Work | None:
    """Return the work of a call with these arguments; None for a layer that is not known.

    A comparison counts as an addition. Biases, which layers add once, and norms, which can be folded into the linear
    map before them, cost nothing.
    """
    first = given[0] if given else None
    if isinstance(layer, CodesInput):
        return Work("coding", *layer.coding_work(first, out))
    if isinstance(layer, SpikingLayer | IntegerNeurons):
        neuron = layer.neuron
        return _neurons(neuron, given, neuron.levels) if layer.unrolled and isinstance(neuron, IntegerLIF) else None
    if isinstance(layer, LIF | PLIF | IntegerLIF):
        return _neurons(layer, given, 1)
    if isinstance(layer, NORMS):
        return Work("norm", note="folded into the layer before it")
    if isinstance(layer, ACTIVATIONS):
        return Work("activation", additions=features(first).numel())
    if isinstance(layer, POOLINGS):
        return Work("pooling", additions=features(first).numel())
    counted = pairs_and_channels(layer, first, out)
    return None if counted is None else _linear(*counted, features(first), _steps(first))


def features(x: Any) -> Tensor:
    """Return a tensor, or the features of a sparse one."""
    x = x if isinstance(x, Tensor) else x.features
    return x.float() if x.dtype in (torch.bool, torch.uint8) else x


def _steps(x: Any) -> int:
    """Return how many steps of spikes stand side by side, as unrolled sparse convolutions in training take them."""
    return 1 if isinstance(x, Tensor) or x.features.ndim == 2 else len(x.features)


def _linear(pairs: int, channels: int, x: Tensor, steps: int) -> Work:
    """Return the work of pairs times channels: additions for spikes alone, a multiplication for every value."""
    dense = pairs * channels
    if not are_spikes(x):
        return Work("layer", multiplications=dense, pairs=pairs, dense=dense, reads="values")
    fired = x.sum(dtype=torch.float64).item()
    inputs = x.numel() // steps  # spikes of all steps that arrive at one input
    return Work("layer", dense * fired / max(inputs, 1), 0.0, pairs, dense, "spikes", fired, inputs)


def are_spikes(x: Tensor) -> bool:
    """Whether all values are whole, from 0 to `MOST_SPIKES`: a number of spikes that arrive together."""
    return bool(((x == x.round()) & (x >= 0) & (x <= MOST_SPIKES)).all())


def _neurons(neuron: nn.Module, given: tuple[Any, ...], levels: int) -> Work:
    """Return one comparison a level, and the leak of a potential that is there: a product and a sum."""
    count, resting = features(given[0]).numel(), len(given) < 2 or given[1] is None
    return Work("neuron", additions=count * levels, multiplications=0 if resting else count)
