"""Block means as one Triton kernel, a block of a head a program: the same bits at every run."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

from sparse_kernels._tensors import contiguous, rows
from sparse_kernels._triton import compiler_options, grid_reason, jit, shared_strides, start_reason, tl, triton

ROWS = 32  # that are loaded at once


def can_run(x: Float[Tensor, "b h s d"]) -> bool:
    """Return whether Triton is there, its grid takes so many batches and heads, and the device runs the kernel."""
    if triton is None or grid_reason(batches=x.shape[0], heads=x.shape[1]) is not None:
        return False
    return start_reason(pooled_kernel, x) is None


@jit
def pooled_kernel(
    p_x, p_offsets, p_order, p_means, x_strides, offset_strides, order_strides,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    i_block, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    p_border = p_offsets + i_b * offset_strides[0] + i_h * offset_strides[1] + i_block
    start, end = tl.load(p_border), tl.load(p_border + 1)
    i_d = tl.arange(0, BLOCK_D)
    p_x += i_b * x_strides[0] + i_h * x_strides[1]
    b_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for position in range(start, end, ROWS):
        i_position = position + tl.arange(0, ROWS)
        inside = i_position < end
        if p_order is None:
            i_row = i_position.to(tl.int64)
        else:
            p_place = p_order + i_b * order_strides[0] + i_h * order_strides[1] + i_position
            i_row = tl.load(p_place, mask=inside, other=0).to(tl.int64)
        mask = inside[:, None] & (i_d < HEAD_DIM)[None, :]
        b_sum += tl.load(p_x + i_row[:, None] * x_strides[2] + i_d[None, :], mask=mask, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_sum, 0) / tl.maximum(end - start, 1).to(tl.float32)
    i_line = (i_b * tl.num_programs(1) + i_h) * tl.num_programs(0) + i_block
    tl.store(p_means + i_line * HEAD_DIM + i_d, b_mean, mask=i_d < HEAD_DIM)


@torch.library.custom_op(
    "sparse_kernels::pooled_triton",
    mutates_args=(),
    schema="(Tensor x, Tensor offsets, Tensor? order) -> Tensor",
)
def pooled_triton(
    x: Float[Tensor, "b h s d"], offsets: Int32[Tensor, "#b #h n1"], order: Int[Tensor, "#b #h s"] | None
) -> Float32[Tensor, "b h n d"]:
    """The custom operator behind pooled: one graph node under torch.compile."""
    x, offsets, order = rows(x), contiguous(offsets), contiguous(order)
    batch, heads, _, head_dim = x.shape
    means = _empty(x, offsets)
    with torch.cuda.device_of(x):
        pooled_kernel[(means.shape[2], heads, batch)](
            x, offsets, order, means, x.stride()[:3], shared_strides(offsets), shared_strides(order),
            HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), ROWS=ROWS, **compiler_options(num_warps=4),
        )  # fmt: skip
    return means


@pooled_triton.register_fake
def _empty(x: Tensor, offsets: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:2], offsets.shape[-1] - 1, x.shape[3], dtype=torch.float32)
