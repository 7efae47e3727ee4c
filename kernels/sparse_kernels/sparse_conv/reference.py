"""The definition of sparse convolution: torch only, any device and floating type."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def can_run(x: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


def convolve(
    x: Float[Tensor, "n c_in"], weight: Float[Tensor, "slots c_in c_out"], kernel_map: Int[Tensor, "slots m"]
) -> Float[Tensor, "m c_out"]:
    """Sum over the slots of the mapped rows times the slot's weights."""
    _check_named(kernel_map, len(x))
    wide = _wide(x)
    out = wide.new_zeros(kernel_map.shape[1], weight.shape[2])
    for slot, rows in enumerate(kernel_map.long()):
        there = (rows >= 0).nonzero().flatten()
        out[there] += wide[rows[there]] @ weight[slot].to(wide.dtype)
    return out.to(x.dtype)


def weight_gradient(
    x: Float[Tensor, "n c_in"], gradient: Float[Tensor, "m c_out"], kernel_map: Int[Tensor, "slots m"]
) -> Float[Tensor, "slots c_in c_out"]:
    """Sum over the pairs of each slot of the outer products of input and output gradient."""
    _check_named(kernel_map, len(x))
    wide, gradient, products = _wide(x), _wide(gradient), []
    for rows in kernel_map.long():
        there = (rows >= 0).nonzero().flatten()
        products.append(wide[rows[there]].T @ gradient[there])
    return torch.stack(products)


def _check_named(kernel_map: Int[Tensor, "slots m"], rows: int) -> None:
    if kernel_map.numel() and kernel_map.amax() >= rows:
        raise ValueError(f"the kernel map must name input rows 0 to {rows - 1}, or -1 for none; it names others")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
