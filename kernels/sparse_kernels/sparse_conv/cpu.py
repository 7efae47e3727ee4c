"""The C++ kernel: gather, product and sum fused for a tile of output rows, on AVX-512, AVX2 or SSE."""

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
    weight: Float[Tensor, "slots c_in c_out"],
    kernel_map: Int[Tensor, "slots m"],
    instructions: str = "",
) -> Float[Tensor, "m c_out"]:
    """Return the outputs; sums are in float32. `instructions` forces an instruction set, for tests."""
    return torch.ops.sparse_kernels.sparse_conv_cpu(rows(x), weight.float(), rows(kernel_map), instructions)


def weight_gradient(
    x: Float[Tensor, "n c_in"],
    gradient: Float[Tensor, "m c_out"],
    kernel_map: Int[Tensor, "slots m"],
    instructions: str = "",
) -> Float[Tensor, "slots c_in c_out"]:
    """Return the gradient of the weights in float32."""
    return torch.ops.sparse_kernels.sparse_conv_weight_cpu(rows(x), rows(gradient), rows(kernel_map), instructions)
