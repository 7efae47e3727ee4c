"""Check the arguments, choose a backend, call it; gradients of every order are convolutions again."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._backends import choose, load_backend
from sparse_kernels._checks import DTYPES, check_devices, check_types, described, refuse_tangents
from sparse_kernels.sparse_conv.kernel_map import KernelMap

BACKENDS = ("cpu", "reference")


def sparse_conv(
    features: Float[Tensor, "inputs c_in"],
    weight: Float[Tensor, "c_out *kernel c_group"],
    kernel_map: KernelMap,
    bias: Float[Tensor, " c_out"] | None = None,
    *,
    groups: int = 1,
    backend: str | None = None,
) -> Float[Tensor, "outputs c_out"]:
    """Return the convolution of features at the map's input coordinates, one row for each of its output coordinates.

    Weights are laid out as in spconv (out, kernel axes, in). Submanifold, strided, transposed and inverse convolution
    differ only in the map. With `groups`, as in torch.nn.Conv3d, group g of the output channels sees group g of the
    input channels only, and the weights' last axis is c_in / groups long; groups = c_in is depthwise convolution. The
    same bits come out for every number of threads. Backends: cpu (C++; float32, bfloat16, float16, sums in float32),
    reference (torch; also float64 and CUDA). ValueError on shapes or types that do not fit, groups that do not divide;
    NotImplementedError in forward-mode differentiation.
    """
    check_convolution(features, weight, kernel_map, bias, groups)
    refuse_tangents("sparse_conv", features, weight)
    slots = weight.flatten(1, -2).permute(1, 2, 0)
    chosen = chosen_backend(features, backend)
    out = convolve(features, slots, kernel_map.forward, kernel_map.backward, chosen, groups)
    return out if bias is None else out + bias


def chosen_backend(x: Tensor, backend: str | None = None) -> str:
    """Return the backend for these rows; a warning names whoever called the convolution. ValueError as in choose."""
    # Shapes alone, as on meta, are no reason to warn.
    if backend is None and (x.is_cuda or x.is_meta or x.dtype == torch.float64):
        return "reference"
    if torch.compiler.is_compiling():  # a graph imports no modules, and does not break for a warning
        built = backend != "reference" and x.device.type == "cpu" and x.dtype in DTYPES and _is_built()
        if backend == "cpu" and not built:
            raise ValueError("backend cpu cannot run this call of sparse_conv; outside of a graph it says why")
        return backend or ("cpu" if built else "reference")
    chosen = choose("sparse_conv", "sparse convolution runs", backend, x, accepted=BACKENDS)
    return chosen.__name__.rpartition(".")[2]


@torch.compiler.assume_constant_result
def _is_built() -> bool:
    return _extension.load() is None


def check_groups(groups: Any, channels_in: int, channels_out: int) -> None:
    """Refuse groups that do not divide the channels. ValueError."""
    whole = isinstance(groups, int) and not isinstance(groups, bool) and groups >= 1
    if not whole or channels_in % groups or channels_out % groups:
        raise ValueError(
            f"groups must be a whole number that divides the {channels_in} in channels and the {channels_out} "
            f"out channels, got {groups!r}"
        )


def check_convolution(
    features: Tensor, weight: Tensor, kernel_map: Any, bias: Tensor | None, groups: int = 1, types: bool = True
) -> None:
    """Refuse rows, weights and a bias that do not fit the map or each other; `types` unless features are of another."""
    if not isinstance(kernel_map, KernelMap):
        raise ValueError(f"kernel_map must be a KernelMap, as submanifold_map makes one, got {described(kernel_map)}")
    inputs = kernel_map.backward.shape[1]
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != inputs:
        raise ValueError(
            f"features must be (rows, channels) with the {inputs} input rows of the map, got {described(features)}"
        )
    check_types((*DTYPES, torch.float64), **({"features": features} if types else {}), weight=weight)
    check_devices(features=features, weight=weight, forward=kernel_map.forward, backward=kernel_map.backward)
    if weight.ndim > 0:
        check_groups(groups, features.shape[1], weight.shape[0])
    if tuple(weight.shape[1:]) != (*kernel_map.kernel, features.shape[1] // groups) or 0 in weight.shape:
        each = f" a group, with {groups} groups" if groups > 1 else ""
        raise ValueError(
            f"weight must be (out channels, *{kernel_map.kernel}, {features.shape[1] // groups} in channels{each}), "
            f"got {tuple(weight.shape)}"
        )
    if bias is None:
        return
    if not isinstance(bias, Tensor) or bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
        raise ValueError(f"bias must be ({weight.shape[0]},) in {weight.dtype}, got {described(bias)}")
    check_devices(features=features, bias=bias)


@torch.library.custom_op(
    "sparse_kernels::sparse_conv",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor forward, Tensor backward, str backend, int groups=1) -> Tensor",
)
def convolve(x: Tensor, weight: Tensor, forward: Tensor, backward: Tensor, backend: str, groups: int = 1) -> Tensor:
    """The operator behind sparse_conv, weights as (slots c_in/groups c_out): one graph node under torch.compile."""
    return load_backend("sparse_conv", backend, BACKENDS).convolve(x, weight, forward, groups)


@torch.library.custom_op(
    "sparse_kernels::sparse_conv_weight",
    mutates_args=(),
    schema="(Tensor x, Tensor gradient, Tensor forward, Tensor backward, str backend, int groups=1) -> Tensor",
)
def convolve_weight(
    x: Tensor, gradient: Tensor, forward: Tensor, backward: Tensor, backend: str, groups: int = 1
) -> Tensor:
    """The gradient of the weights (slots c_in/groups c_out), in the type of x."""
    return load_backend("sparse_conv", backend, BACKENDS).weight_gradient(x, gradient, forward, groups).to(x.dtype)


@convolve.register_fake
def _(x: Tensor, weight: Tensor, forward: Tensor, backward: Tensor, backend: str, groups: int = 1) -> Tensor:
    return x.new_empty(forward.shape[1], weight.shape[2])


@convolve_weight.register_fake
def _(x: Tensor, gradient: Tensor, forward: Tensor, backward: Tensor, backend: str, groups: int = 1) -> Tensor:
    return x.new_empty(forward.shape[0], x.shape[1] // groups, gradient.shape[1])


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, str, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def turned(weight: Float[Tensor, "slots c_in_group c_out"], groups: int) -> Float[Tensor, "slots c_out_group c_in"]:
    """Return the weights of the way back: in and out channels changed over within each group."""
    return weight.unflatten(2, (groups, -1)).permute(0, 3, 2, 1).flatten(2)


def _convolve_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    refuse_tangents("sparse_conv", gradient)
    x, weight, forward, backward = ctx.saved_tensors
    back = to_weight = None
    if ctx.needs_input_grad[0]:
        back = convolve(gradient, turned(weight, ctx.settings[1]), backward, forward, *ctx.settings)
    if ctx.needs_input_grad[1]:
        to_weight = convolve_weight(x, gradient, forward, backward, *ctx.settings)
    return back, to_weight, None, None, None, None


def _weight_backward(ctx: Any, change: Float[Tensor, "slots c_group c_out"]) -> tuple[Tensor | None, ...]:
    refuse_tangents("sparse_conv", change)
    x, gradient, forward, backward = ctx.saved_tensors
    to_x = to_gradient = None
    if ctx.needs_input_grad[0]:
        to_x = convolve(gradient, turned(change, ctx.settings[1]), backward, forward, *ctx.settings)
    if ctx.needs_input_grad[1]:
        to_gradient = convolve(x, change, forward, backward, *ctx.settings)
    return to_x, to_gradient, None, None, None, None


convolve.register_autograd(_convolve_backward, setup_context=_setup)
convolve_weight.register_autograd(_weight_backward, setup_context=_setup)
