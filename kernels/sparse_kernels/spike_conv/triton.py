"""Event-driven convolution as a Triton kernel: one program an output row and a block of its channels.

Names: p_ pointers, b_ block values, i_ indices, capitals are compile-time constants. Only rows of weights whose channel
fired are read. Whether spikes are 0 or 1 is not looked at: that would wait for the device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sparse_kernels._checks import DTYPES
from sparse_kernels._triton import compiler_options, jit, start_reason, tl, triton

CHANNELS_IN, CHANNELS_OUT = 16, 128  # of one block
OPTIONS = compiler_options(num_warps=4)


def can_run(spikes: Tensor, weight: Tensor) -> str | None:
    """Return why the Triton kernel cannot take these spikes, or None."""
    if triton is None:
        return "triton is not installed (pip install triton)"
    if weight.dtype not in DTYPES:
        return f"the Triton kernel takes float32, bfloat16 or float16, weights are {weight.dtype}"
    if isinstance(accumulate_kernel, triton.JITFunction) and not spikes.is_cuda:  # else it is interpreted
        return f"the Triton kernel needs CUDA tensors, spikes are on {spikes.device}"
    return start_reason(accumulate_kernel, spikes)


@jit
def accumulate_kernel(
    p_spikes, p_weight, p_map, p_out, steps, rows, outputs, channels_in, channels_out, slots,
    stride_step, stride_row, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    i_out = tl.program_id(0).to(tl.int64)
    i_column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    b_sum = tl.zeros([BLOCK_OUT], tl.float32)
    for _ in range(0, slots):
        i_row = tl.load(p_map + i_out).to(tl.int64)
        if (i_row >= 0) & (i_row < rows):
            for first in range(0, channels_in, BLOCK_IN):
                i_channel = first + tl.arange(0, BLOCK_IN)
                inside = i_channel < channels_in
                b_count = tl.zeros([BLOCK_IN], tl.float32)
                p_step = p_spikes + i_row * stride_row
                for _ in range(0, steps):
                    b_count += tl.load(p_step + i_channel, mask=inside, other=0.0).to(tl.float32)
                    p_step += stride_step
                fired = (b_count > 0)[:, None] & (i_column < channels_out)[None, :]
                i_weight = i_channel[:, None] * channels_out + i_column[None, :]
                b_weight = tl.load(p_weight + i_weight, mask=fired, other=0.0).to(tl.float32)
                b_sum += tl.sum(b_weight * b_count[:, None], 0)
        p_map += outputs  # from slot to slot: products of their number may not fit into 32 bits
        p_weight += channels_in * channels_out
    tl.store(p_out + i_out * channels_out + i_column, b_sum.to(p_out.dtype.element_ty), mask=i_column < channels_out)


def accumulate(
    spikes: Shaped[Tensor, "steps n c_in"],
    weight: Float[Tensor, "slots c_in c_out"],
    kernel_map: Int[Tensor, "slots m"],
) -> Float[Tensor, "m c_out"]:
    """Return the outputs; sums are in float32."""
    spikes = spikes.to(weight.dtype)
    spikes = spikes if spikes.stride(2) == 1 else spikes.contiguous()
    weight, kernel_map = weight.contiguous(), kernel_map.contiguous()
    (steps, rows, channels_in), (slots, outputs) = spikes.shape, kernel_map.shape
    out = spikes.new_empty(outputs, weight.shape[2])
    if out.numel():
        grid = outputs, triton.cdiv(weight.shape[2], CHANNELS_OUT)
        with torch.cuda.device_of(spikes):
            accumulate_kernel[grid](
                spikes, weight, kernel_map, out, steps, rows, outputs, channels_in, weight.shape[2], slots,
                spikes.stride(0), spikes.stride(1), BLOCK_IN=CHANNELS_IN, BLOCK_OUT=CHANNELS_OUT, **OPTIONS,
            )  # fmt: skip
    return out
