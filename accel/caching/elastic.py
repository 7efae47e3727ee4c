"""An MLP with the first of its hidden neurons: slices of the weights that are there, made when they are used.

Elastic Diffusion Transformer (arXiv 2602.13993), section on elastic width. Only where training has put the neurons in
order is a prefix of them worth anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from accel.caching.borrowed import on_disk
from accel.errors import InputError
from accel.models.adapters.adapter import Adapter

# (layer, input, width) -> output
Narrowed = Callable[[nn.Module, Tensor, float], Tensor]


def kept_neurons(width: float, neurons: int) -> int:
    """Return how many neurons a share of them is, at least one."""
    return max(1, round(width * neurons))


def first_layer(layer: nn.Module, x: Float[Tensor, "*batch channels"], width: float) -> Float[Tensor, "*batch neurons"]:
    """Return the first neurons of the layer that makes them."""
    linear = _linear(layer)
    kept = kept_neurons(width, linear.out_features)
    # What is offloaded is brought over slice by slice.
    bias = None if linear.bias is None else linear.bias[:kept].to(x.device, x.dtype)
    return functional.linear(x, linear.weight[:kept].to(x.device, x.dtype), bias)


def last_layer(layer: nn.Module, x: Float[Tensor, "*batch neurons"], width: float) -> Float[Tensor, "*batch channels"]:
    """Return what the first neurons add up to."""
    linear = _linear(layer)
    bias = None if linear.bias is None else linear.bias.to(x.device, x.dtype)
    return functional.linear(x, linear.weight[:, : kept_neurons(width, linear.in_features)].to(x.device, x.dtype), bias)


def check_elastic(transformer: nn.Module, adapter: Adapter) -> None:
    """Raise InputError, with the reason and what to do, unless all MLPs of a transformer can be narrowed."""
    name = type(transformer).__name__
    if adapter.mlp is None or adapter.blocks is None:
        raise InputError(f"{name} has no MLP that accel knows how to narrow; leave widths off")
    for index, block in enumerate(adapter.blocks(transformer)):
        for layer in adapter.mlp(block):
            reason = _obstacle(layer)
            if reason is not None:
                raise InputError(f"the MLP of block {index} of this {name} cannot be narrowed: {reason}")


def check_in_memory(transformer: nn.Module) -> None:
    """Raise InputError where weights lie in files, from which only a whole layer's own call brings them over."""
    if on_disk(transformer):
        raise InputError(
            f"the MLPs of this {type(transformer).__name__} cannot be narrowed: its weights are offloaded to files; "
            "offload to memory, attach before offloading, or leave widths off"
        )


def _obstacle(layer: Any) -> str | None:
    """Return why a layer cannot be cut, and what to do, or None."""
    if hasattr(layer, "base_layer") and not getattr(layer, "merged", False):
        return "it carries a LoRA that is not merged; call fuse_lora() first, or leave widths off"
    linear = _linear(layer)
    weight: Any = getattr(linear, "weight", None)
    if type(linear) is not nn.Linear or type(weight) not in (nn.Parameter, Tensor):
        return f"{type(linear).__name__} does not hold plain weights (quantised?); leave widths off, or load it plain"
    if weight.is_meta:
        return "its weights are not here (sequential offloading); attach before offloading, or leave widths off"
    return None if weight.is_floating_point() else f"its weights are {weight.dtype}; leave widths off, or load it plain"


def _linear(layer: Any) -> Any:
    """Return the layer, or the one inside a merged LoRA."""
    return getattr(layer, "base_layer", layer)
