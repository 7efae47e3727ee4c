"""Keys and values brought into an order before the kernel: a copy costs less than looking up every row again."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._triton import compiler_options, jit, shared_strides, tl, triton

ROWS = 32  # that one program copies


@jit
def order_kernel(
    p_k, p_v, p_order, p_k_out, p_v_out, k_strides, v_strides, order_strides, length, heads_per_kv_head,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    i_b, i_h = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_d = tl.arange(0, BLOCK_D)
    i_place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = i_place < length
    i_row = tl.load(p_order + i_b * order_strides[0] + i_h * order_strides[1] + i_place, mask=inside, other=0)
    i_row = i_row.to(tl.int64)  # an order of int32 must not overflow in the product with a step
    mask = inside[:, None] & (i_d < HEAD_DIM)[None, :]
    i_h_kv = i_h // heads_per_kv_head
    p_k += i_b * k_strides[0] + i_h_kv * k_strides[1]
    p_v += i_b * v_strides[0] + i_h_kv * v_strides[1]
    i_out = ((i_b * tl.num_programs(1) + i_h) * length + i_place)[:, None] * HEAD_DIM + i_d[None, :]
    tl.store(p_k_out + i_out, tl.load(p_k + i_row[:, None] * k_strides[2] + i_d[None, :], mask=mask), mask=mask)
    tl.store(p_v_out + i_out, tl.load(p_v + i_row[:, None] * v_strides[2] + i_d[None, :], mask=mask), mask=mask)


def in_order(
    k: Float[Tensor, "b h_kv t d"], v: Float[Tensor, "b h_kv t d"], order: Int[Tensor, "#b #h t"]
) -> tuple[Float[Tensor, "b _ t d"], Float[Tensor, "b _ t d"]]:
    """Return contiguous keys and values at their places in the order; as many heads as have orders of their own."""
    batch, kv_heads, length, head_dim = k.shape
    heads = max(kv_heads, order.shape[1])
    ordered = k.new_empty(2, batch, heads, length, head_dim)
    order_kernel[(triton.cdiv(length, ROWS), heads, batch)](
        k, v, order, *ordered, k.stride()[:3], v.stride()[:3], shared_strides(order), length, heads // kv_heads,
        HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), ROWS=ROWS, **compiler_options(num_warps=4),
    )  # fmt: skip
    return ordered[0], ordered[1]
