"""The C++ kernel: channels that fired are listed once, then their weights are added in registers, slot by slot."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._checks import DTYPES


def can_run(spikes: Tensor, weight: Tensor) -> str | None:
    """Return why the C++ kernel cannot run the call, or None; builds it at the first call."""
    if weight.dtype not in DTYPES:
        return f"weights are {weight.dtype}; the kernel takes float32, bfloat16 and float16"
    return _extension.reason_against(spikes=spikes)


def accumulate(
    spikes: Shaped[Tensor, "steps n c_in"],
    weight: Float[Tensor, "slots c_in c_out"],
    kernel_map: Int[Tensor, "slots m"],
    instructions: str = "",
) -> Float[Tensor, "m c_out"]:
    """Return the outputs; sums are in float32. `instructions` forces an instruction set, for tests."""
    spikes = spikes if spikes.stride(2) == 1 else spikes.contiguous()
    kernel_map = kernel_map if kernel_map.stride(1) == 1 else kernel_map.contiguous()
    out = torch.ops.sparse_kernels.spike_conv_cpu(spikes, weight.float(), kernel_map, instructions)
    return out.to(weight.dtype)  # of bytes the sums are float32
