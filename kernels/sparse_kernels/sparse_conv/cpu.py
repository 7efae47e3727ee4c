"""The C++ kernel: gather, product and sum fused for a tile of output rows, on AMX, AVX-512, AVX2 or SSE."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._checks import DTYPES
from sparse_kernels._tensors import rows


def can_run(x: Tensor) -> str | None:
    """Return why the C++ kernel cannot run the call, or None; builds it at the first call."""
    if x.dtype not in DTYPES:
        return f"features are {x.dtype}; the kernel takes float32, bfloat16 and float16"
    return _extension.reason_against(features=x)


def convolve(
    x: Float[Tensor, "n c_in"],
    weight: Float[Tensor, "slots c_group c_out"],
    kernel_map: Int[Tensor, "slots m"],
    groups: int = 1,
    instructions: str = "",
) -> Float[Tensor, "m c_out"]:
    """Return the outputs; sums are in float32. `instructions` forces an instruction set, for tests."""
    ops = torch.ops.sparse_kernels
    if _is_depthwise(x, groups):
        return ops.sparse_conv_depthwise_cpu(rows(x), rows(weight[:, 0].float()), rows(kernel_map), instructions)
    return ops.sparse_conv_cpu(rows(x), weight, rows(kernel_map), groups, instructions)


def weight_gradient(
    x: Float[Tensor, "n c_in"],
    gradient: Float[Tensor, "m c_out"],
    kernel_map: Int[Tensor, "slots m"],
    groups: int = 1,
    instructions: str = "",
) -> Float[Tensor, "slots c_group c_out"]:
    """Return the gradient of the weights in float32."""
    ops, inputs = torch.ops.sparse_kernels, (rows(x), rows(gradient), rows(kernel_map))
    if _is_depthwise(x, groups):
        return ops.sparse_conv_depthwise_weight_cpu(*inputs, instructions)[:, None]
    return ops.sparse_conv_weight_cpu(*inputs, groups, instructions)


def _is_depthwise(x: Float[Tensor, "n c_in"], groups: int) -> bool:
    """Return whether every channel is a group, whose products are better made channel by channel."""
    return groups == x.shape[1] > 1
