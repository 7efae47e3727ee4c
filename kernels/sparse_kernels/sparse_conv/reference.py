"""The definition of sparse convolution: torch only, any device and floating type."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._precision import without_autocast


def can_run(x: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


@without_autocast
def convolve(
    x: Float[Tensor, "n c_in"],
    weight: Float[Tensor, "slots c_group c_out"],
    kernel_map: Int[Tensor, "slots m"],
    groups: int = 1,
) -> Float[Tensor, "m c_out"]:
    """Sum over the slots of the mapped rows times the slot's weights, each group of channels by itself."""
    _check_named(kernel_map, len(x))
    wide = _wide(x)
    out = wide.new_zeros(kernel_map.shape[1], weight.shape[2])
    for slot, rows in enumerate(kernel_map.long()):
        there = (rows >= 0).nonzero().flatten()
        products = _by_group(wide[rows[there]], groups) @ _by_group(weight[slot].to(wide.dtype), groups)
        out[there] += products.transpose(0, 1).flatten(1)
    return out.to(x.dtype)


@without_autocast
def weight_gradient(
    x: Float[Tensor, "n c_in"],
    gradient: Float[Tensor, "m c_out"],
    kernel_map: Int[Tensor, "slots m"],
    groups: int = 1,
) -> Float[Tensor, "slots c_group c_out"]:
    """Sum over the pairs of each slot of the outer products of input and output gradient."""
    _check_named(kernel_map, len(x))
    wide, gradient, products = _wide(x), _wide(gradient), []
    for rows in kernel_map.long():
        there = (rows >= 0).nonzero().flatten()
        outer = _by_group(wide[rows[there]], groups).mT @ _by_group(gradient[there], groups)
        products.append(outer.transpose(0, 1).flatten(1))
    return torch.stack(products)


def _by_group(x: Float[Tensor, "rows channels"], groups: int) -> Float[Tensor, "groups rows c_group"]:
    return x.unflatten(1, (groups, -1)).transpose(0, 1)


def _check_named(kernel_map: Int[Tensor, "slots m"], rows: int) -> None:
    if kernel_map.numel() and kernel_map.amax() >= rows:
        raise ValueError(f"the kernel map must name input rows 0 to {rows - 1}, or -1 for none; it names others")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
