"""Block mass as one Triton kernel that keeps a tile of queries and walks all keys.

Names: p_ pointers, b_ block values, i_ indices, capitals are compile-time constants. Scores are in log2 units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels import _tensors
from sparse_kernels._tensors import contiguous
from sparse_kernels._triton import (
    BARRIERS,
    LOG2E,
    LOG2E_INSIDE,
    compiler_options,
    device_limits,
    grid_reason,
    jit,
    reason_against,
    shared_strides,
    tl,
    triton,
)
from sparse_kernels.block_scores.triton_antidiagonals import antidiagonal_scores as antidiagonal_scores
from sparse_kernels.tiles import cut_blocks


class MassConfig(NamedTuple):
    """Tile shape and compiler options of one launch."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int | bool]:
        """Compiler options."""
        return compiler_options(self.num_warps, self.num_stages)


def can_run(q: Tensor, k: Tensor) -> str | None:
    """Return why the Triton kernels cannot take these tensors, or None."""
    reason = grid_reason(batches=q.shape[0], heads=q.shape[1])
    return reason or reason_against(block_mass_kernel, {"q": q, "k": k})


def mass_config(
    head_dim: int, itemsize: int, block_sizes: tuple[float, float], *, gathered: bool, shared_memory: int
) -> MassConfig:
    """Return the tile for mean (query, key) block sizes in rows and the shared memory of one thread block in bytes.

    `gathered`: key rows go through an order.
    """
    block_d = max(16, triton.next_power_of_2(head_dim))
    if itemsize == 4:
        block_m, block_n = 32, 32 if block_d <= 64 else 16
    else:
        block_m = 64 if block_sizes[0] <= 64 else 128
        block_n = 128 if block_sizes[1] >= 96 else 64 if block_sizes[1] > 32 else 32
        block_n = min(block_n, 64) if block_d == 256 else block_n

    def needed(buffers: int) -> int:
        return block_d * itemsize * (block_m + block_n * buffers)

    buffers = next((buffers for buffers in (3, 2) if needed(buffers) <= shared_memory - BARRIERS), 1)
    # The compiler shares its stages evenly between the order and the rows the order points to.
    return MassConfig(block_m, block_n, block_d, 8 if block_m == 128 else 4, 2 * buffers - 1 if gathered else buffers)


@jit
def block_mass_kernel(
    p_q, p_k, p_lse, p_mass, p_tiles, p_pieces, p_piece_counts, p_q_order, p_kv_order,
    q_strides, k_strides, tile_strides, piece_strides, count_strides, q_order_strides, kv_order_strides,
    q_len, key_blocks, heads_per_kv_head, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i_b, i_h, i_tile = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0)
    p_tile = p_tiles + i_b * tile_strides[0] + i_h * tile_strides[1] + i_tile * 2
    first, end = tl.load(p_tile), tl.load(p_tile + 1)
    if first >= end:
        return
    i_d = tl.arange(0, BLOCK_D)
    in_head = i_d < HEAD_DIM
    i_position = first + tl.arange(0, BLOCK_M)
    in_tile = i_position < end
    if p_q_order is None:
        i_row = i_position.to(tl.int64)
    else:
        p_q_order += i_b * q_order_strides[0] + i_h * q_order_strides[1]
        i_row = tl.load(p_q_order + i_position, mask=in_tile, other=0)
    p_q += i_b * q_strides[0] + i_h * q_strides[1]
    b_q = tl.load(
        p_q + i_row[:, None] * q_strides[2] + i_d[None, :], mask=in_tile[:, None] & in_head[None, :], other=0.0
    )
    i_flat = i_b * tl.num_programs(1) + i_h
    # Rows outside the tile get what leaves a row out: an LSE of +inf.
    b_lse = tl.load(p_lse + i_flat * q_len + i_row, mask=in_tile, other=float("inf")) * LOG2E_INSIDE

    p_k += i_b * k_strides[0] + (i_h // heads_per_kv_head) * k_strides[1]
    p_pieces += i_b * piece_strides[0] + i_h * piece_strides[1]
    if p_kv_order is not None:
        p_kv_order += i_b * kv_order_strides[0] + i_h * kv_order_strides[1]
    p_mass += (i_flat * tl.num_programs(0) + i_tile) * key_blocks
    b_mass = tl.zeros([BLOCK_M], tl.float32)
    for piece in range(tl.load(p_piece_counts + i_b * count_strides[0] + i_h * count_strides[1])):
        p_piece = p_pieces + piece * 3
        i_block, start, stop = tl.load(p_piece), tl.load(p_piece + 1), tl.load(p_piece + 2)
        i_key = start + tl.arange(0, BLOCK_N)
        in_block = i_key < stop
        if p_kv_order is None:
            i_key_row = i_key.to(tl.int64)
        else:
            i_key_row = tl.load(p_kv_order + i_key, mask=in_block, other=0)
        kv_mask = in_block[:, None] & in_head[None, :]
        b_k = tl.load(p_k + i_key_row[:, None] * k_strides[2] + i_d[None, :], mask=kv_mask, other=0.0)
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2
        # Masked after the exponential: a row with an LSE of -inf has no mass where there are no keys.
        b_weight = tl.where(in_block[None, :], tl.exp2(b_score - b_lse[:, None]), 0.0)
        b_mass += tl.sum(b_weight, 1)
        leaves = start + BLOCK_N >= stop
        tl.store(p_mass + i_block, tl.sum(b_mass), mask=leaves)
        b_mass = tl.where(leaves, 0.0, b_mass)


def block_mass(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    lse: Float[Tensor, "b h sq"],
    q_offsets: Int[Tensor, "#b #h nq1"],
    kv_offsets: Int[Tensor, "#b #h nk1"],
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
) -> Float[Tensor, "b h nq nk"]:
    """Return exp(q k scale - lse) summed over the rows and keys of each block."""
    return block_mass_triton(q, k, lse, q_offsets, kv_offsets, q_order, kv_order, scale)


@torch.library.custom_op(
    "sparse_kernels::block_mass_triton",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor lse, Tensor q_offsets, Tensor kv_offsets, Tensor? q_order, Tensor? kv_order, "
    "float scale) -> Tensor",
)
def block_mass_triton(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    lse: Float[Tensor, "b h sq"],
    q_offsets: Int[Tensor, "#b #h nq1"],
    kv_offsets: Int[Tensor, "#b #h nk1"],
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
) -> Tensor:
    """The custom operator behind block_mass: one graph node under torch.compile."""
    q, k, q_order, kv_order = _tensors.rows(q), _tensors.rows(k), contiguous(q_order), contiguous(kv_order)
    batch, heads, q_len, head_dim = q.shape
    blocks = q_offsets.shape[-1] - 1, kv_offsets.shape[-1] - 1
    config = mass_config(
        head_dim,
        q.element_size(),
        (q_len / blocks[0], k.shape[2] / blocks[1]),
        gathered=kv_order is not None,
        shared_memory=device_limits(q)[0],
    )
    with torch.cuda.device_of(q):
        rows, keys = cut_blocks(q_offsets, q_len, config.block_m), cut_blocks(kv_offsets, k.shape[2], config.block_n)
        tiles = torch.stack([rows.first, rows.block_end], -1).int()
        pieces, counts = torch.stack([keys.block, keys.first, keys.block_end], -1).int(), keys.ends[..., -1].int()
        # Key blocks without keys are never visited: they keep the zeros.
        mass = q.new_zeros(batch, heads, tiles.shape[2], blocks[1], dtype=torch.float32)
        block_mass_kernel[(tiles.shape[2], heads, batch)](
            q, k, lse.contiguous(), mass, tiles, pieces, counts, q_order, kv_order,
            q.stride()[:3], k.stride()[:3], shared_strides(tiles), shared_strides(pieces), shared_strides(counts),
            shared_strides(q_order), shared_strides(kv_order), q_len, blocks[1], heads // k.shape[1],
            scale * LOG2E,
            HEAD_DIM=head_dim, BLOCK_D=config.block_d, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            PRECISION="ieee", **config.options(),
        )  # fmt: skip
        # Tiles of one block are summed in their order: the same bits at every run.
        ends = torch.nn.functional.pad(rows.ends, (1, 0)).expand(batch, heads, -1).contiguous()
        return torch.segment_reduce(mass, "sum", offsets=ends, axis=2, initial=0, unsafe=True)


@block_mass_triton.register_fake
def _fake_mass(q: Tensor, k: Tensor, lse: Tensor, q_offsets: Tensor, kv_offsets: Tensor, *_: object) -> Tensor:
    blocks = q_offsets.shape[-1] - 1, kv_offsets.shape[-1] - 1
    return q.new_empty(*q.shape[:2], *blocks, dtype=torch.float32)
