"""Hooks on every layer of a network, for one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pointcloud.metering.record import Energy, LayerEnergy
from pointcloud.metering.work import Work, work_of
from pointcloud.nn import IntegerNeurons, SpikingLayer


@torch.no_grad()
def energy(model: nn.Module, *inputs: Any, **named: Any) -> Energy:
    """Return what `model(*inputs, **named)` costs layer by layer, measured in evaluation mode.

    A linear layer makes pairs of rows times channels; where it reads spikes, these times the measured mean of its input
    are additions, elsewhere all are multiplications. Rates are means over an input, so that rows with more neighbours
    than others weigh as much as those. Neurons, ReLU, poolings and input coding have rows of their own; what holds
    parameters and is not known is named as not counted. Operations between layers (sums, maxima, searches) have no row.
    """
    calls: dict[str, tuple[nn.Module, list[Work]]] = {}
    handles = [
        module.register_forward_hook(_counting(name, calls), with_kwargs=True) for name, module in model.named_modules()
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()(*inputs, **named)
    finally:
        for handle in handles:
            handle.remove()
        for module, was in training.items():
            module.training = was
    rows = [_row(name, module, works) for name, (module, works) in calls.items()]
    return Energy(tuple(rows + _unknown(model, calls)))


def _counting(name: str, calls: dict[str, tuple[nn.Module, list[Work]]]) -> Callable[..., None]:
    def count(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        work = work_of(module, (*given, *named.values()), out)
        if work is None:
            return
        if isinstance(module, SpikingLayer | IntegerNeurons):  # its neuron spikes there without being called
            calls.setdefault(f"{name}.neuron".lstrip("."), (module.neuron, []))[1].append(work)
        else:
            calls.setdefault(name, (module, []))[1].append(work)

    return count


def _row(name: str, module: nn.Module, works: list[Work]) -> LayerEnergy:
    first = works[0]
    fired, inputs = sum(work.fired for work in works), sum(work.inputs for work in works)
    values = any(work.reads == "values" for work in works)
    return LayerEnergy(
        name or type(module).__name__,
        type(module).__name__,
        first.part,
        len(works),
        "values" if values else first.reads,
        None if values or not inputs else fired / inputs,
        sum(work.pairs for work in works),
        sum(work.dense for work in works),
        sum(work.additions for work in works),
        sum(work.multiplications for work in works),
        first.note,
    )


def _unknown(model: nn.Module, calls: dict[str, Any]) -> list[LayerEnergy]:
    """Return rows of all that hold parameters of their own and have none yet."""
    return [
        LayerEnergy(
            name or type(module).__name__, type(module).__name__, "not counted", 0, note="its work is not known"
        )
        for name, module in model.named_modules()
        if name not in calls and any(True for _ in module.parameters(recurse=False))
    ]
