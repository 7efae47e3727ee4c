"""XAttention's antidiagonal scores as two Triton kernels and one matrix product.

The first writes, for each row and key block, the logarithm of its part of the softmax, and the row's LSE; the second
sums. Names: p_ pointers, b_ block values, i_ indices, capitals are compile-time constants; logarithms are to base 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_kernels._tensors import rows
from sparse_kernels._triton import BARRIERS, LOG2E, compiler_options, device_limits, jit, tl, triton

LEVEL_NUMBERS = 2**26  # float32 numbers between the two kernels at once: query blocks go in slabs of that size
MOST_BLOCKS = 65535  # of a slab: they are the second axis of a grid
WIDEST_PIECE = 64  # a key block of more reshaped tokens is scored in pieces


class AntidiagonalConfig(NamedTuple):
    """Tile shape, how key blocks lie in it, and compiler options of the first kernel."""

    block_m: int
    block_n: int
    block_d: int
    width: int  # reshaped keys in a piece of a key block
    pad: int  # columns that a piece takes
    pieces: int  # pieces of a key block
    num_warps: int
    num_stages: int

    def constants(self) -> dict[str, int]:
        """Compile-time constants of the first kernel."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
            "WIDTH": self.width,
            "PAD": self.pad,
            "PIECES": self.pieces,
        }


def antidiagonal_config(head_dim: int, itemsize: int, per_block: int, *, shared_memory: int) -> AntidiagonalConfig:
    """Return the tile for blocks of `per_block` reshaped tokens and the shared memory of one thread block in bytes."""
    block_d = max(16, triton.next_power_of_2(head_dim))
    width = min(per_block, WIDEST_PIECE)
    pad = triton.next_power_of_2(width)
    block_m, block_n = (
        (32, max(pad, 32 if block_d <= 64 else 16)) if itemsize == 4 else (128, 64 if block_d == 256 else 128)
    )

    def needed(buffers: int) -> int:
        return block_d * itemsize * (block_m + block_n) * buffers

    stages = next((buffers for buffers in (4, 3, 2) if needed(buffers) <= shared_memory - BARRIERS), 1)
    warps = 8 if itemsize == 2 else 4
    return AntidiagonalConfig(block_m, block_n, block_d, width, pad, triton.cdiv(per_block, width), warps, stages)


@jit
def _tile_scores(
    p_q, p_k, i_row, i_key, in_keys, q_row_stride, k_row_stride, q_len, kv_len,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over the antidiagonals of STRIDE x STRIDE tiles, as products of depth STRIDE * HEAD_DIM."""
    i_d = tl.arange(0, BLOCK_D)
    in_head = i_d < HEAD_DIM
    b_score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(STRIDE):
        i_query, i_token = i_row * STRIDE + (STRIDE - 1 - step), i_key * STRIDE + step
        q_mask = (i_query < q_len)[:, None] & in_head[None, :]
        kv_mask = (in_keys & (i_token < kv_len))[:, None] & in_head[None, :]
        p_queries = p_q + i_query.to(tl.int64)[:, None] * q_row_stride + i_d[None, :]
        p_keys = p_k + i_token.to(tl.int64)[:, None] * k_row_stride + i_d[None, :]
        b_q, b_k = tl.load(p_queries, mask=q_mask, other=0.0), tl.load(p_keys, mask=kv_mask, other=0.0)
        b_score = tl.dot(b_q, tl.trans(b_k), b_score, input_precision=PRECISION)
    return b_score


@jit
def antidiagonal_levels_kernel(
    p_q, p_k, p_levels, p_lse, q_strides, k_strides, q_len, kv_len, first_row, slab_rows, key_blocks, per_block,
    heads_per_kv_head, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, PIECES: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i_b, i_h = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    GROUPS: tl.constexpr = BLOCK_N // PAD
    i_slab_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_row = first_row + i_slab_row
    p_q += i_b * q_strides[0] + i_h * q_strides[1]
    p_k += i_b * k_strides[0] + (i_h // heads_per_kv_head) * k_strides[1]
    i_flat = i_b * tl.num_programs(1) + i_h
    all_pieces = key_blocks * PIECES
    p_levels += (i_flat * slab_rows + i_slab_row[:, None]) * all_pieces
    i_group, i_within = tl.arange(0, BLOCK_N) // PAD, tl.arange(0, BLOCK_N) % PAD
    key_rows = (kv_len + STRIDE - 1) // STRIDE

    last_piece = all_pieces
    if CAUSAL:
        last_piece = tl.minimum(all_pieces, ((first_row + (tl.program_id(0) + 1) * BLOCK_M) // per_block + 1) * PIECES)
    b_max = tl.full([BLOCK_M], -3.4e38, tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    for piece in range(0, last_piece, GROUPS):
        i_column_piece = piece + i_group
        i_in_block = i_column_piece % PIECES * WIDTH + i_within
        i_key = i_column_piece // PIECES * per_block + i_in_block
        in_keys = (i_within < WIDTH) & (i_in_block < per_block) & (i_key < key_rows)
        b_score = scale_log2 * _tile_scores(
            p_q, p_k, i_row, i_key, in_keys, q_strides[2], k_strides[2], q_len, kv_len,
            HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, STRIDE, PRECISION,
        )  # fmt: skip
        visible = in_keys[None, :] & (i_key[None, :] <= i_row[:, None]) if CAUSAL else in_keys[None, :]
        b_score = tl.reshape(tl.where(visible, b_score, float("-inf")), [BLOCK_M, GROUPS, PAD])
        # The lowest finite float instead of -inf: a piece without keys then gives exp2(-inf) = 0, never inf - inf.
        b_high = tl.maximum(tl.max(b_score, 2), -3.4e38)
        b_part = tl.sum(tl.exp2(b_score - b_high[:, :, None]), 2)
        i_piece = piece + tl.arange(0, GROUPS)
        in_slab = (i_slab_row < slab_rows)[:, None] & (i_piece < all_pieces)[None, :]
        tl.store(p_levels + i_piece[None, :], b_high + tl.log2(b_part), mask=in_slab)
        b_new_max = tl.maximum(b_max, tl.max(b_high, 1))
        b_part = tl.sum(b_part * tl.exp2(b_high - b_new_max[:, None]), 1)
        b_sum = b_sum * tl.exp2(b_max - b_new_max) + b_part
        b_max = b_new_max
    tl.store(p_lse + i_flat * slab_rows + i_slab_row, b_max + tl.log2(b_sum), mask=i_slab_row < slab_rows)


@jit
def antidiagonal_sums_kernel(
    p_levels, p_lse, p_scores, first_block, slab_rows, query_rows, query_blocks, key_blocks, per_block,
    WIDTH: tl.constexpr, PIECES: tl.constexpr, CAUSAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i_head, i_block = tl.program_id(0).to(tl.int64), tl.program_id(1)  # the only axis that takes any number of heads
    i_key_block = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    in_keys = i_key_block < key_blocks
    b_sum = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, per_block, ROWS):
        i_in_block = start + tl.arange(0, ROWS)
        i_slab_row = i_block * per_block + i_in_block
        i_row = first_block * per_block + i_slab_row
        in_block = (i_in_block < per_block) & (i_row < query_rows)
        i_line = i_head * slab_rows + i_slab_row
        b_lse = tl.load(p_lse + i_line, mask=in_block, other=0.0)
        for part in range(PIECES):
            wanted = in_block[:, None] & in_keys[None, :]
            if CAUSAL:  # what lies behind was never written
                wanted = wanted & ((i_key_block * per_block + part * WIDTH)[None, :] <= i_row[:, None])
            p_level = p_levels + i_line[:, None] * (key_blocks * PIECES) + i_key_block[None, :] * PIECES + part
            b_level = tl.load(p_level, mask=wanted, other=float("-inf"))
            b_sum += tl.sum(tl.exp2(b_level - b_lse[:, None]), 0)
    p_scores += (i_head * query_blocks + first_block + i_block) * key_blocks
    tl.store(p_scores + i_key_block, b_sum, mask=in_keys)


def antidiagonal_scores(
    q: Float[Tensor, "b h sq d"], k: Float[Tensor, "b hkv skv d"], block: int, stride: int, scale: float, causal: bool
) -> Float[Tensor, "b h nq nk"]:
    """Return the softmax over reshaped tokens, summed over blocks of block / stride of them."""
    return antidiagonal_scores_triton(q, k, block, stride, scale, causal)


def _launch_slab(
    q: Tensor, k: Tensor, scores: Tensor, config: AntidiagonalConfig, slab: tuple[int, int], per_block: int,
    stride: int, scale: float, causal: bool,
) -> None:  # fmt: skip
    """Score query blocks slab[0] to slab[1] of all heads."""
    batch, heads, q_len, head_dim = q.shape
    query_blocks, key_blocks = scores.shape[2:]
    rows = (slab[1] - slab[0]) * per_block
    levels = scores.new_empty(batch, heads, rows, key_blocks * config.pieces)
    lse = scores.new_empty(batch, heads, rows)
    antidiagonal_levels_kernel[(triton.cdiv(rows, config.block_m), heads, batch)](
        q, k, levels, lse, q.stride()[:3], k.stride()[:3], q_len, k.shape[2], slab[0] * per_block, rows, key_blocks,
        per_block, heads // k.shape[1], scale / stride * LOG2E,
        HEAD_DIM=head_dim, STRIDE=stride, CAUSAL=causal, PRECISION="ieee", **config.constants(),
        **compiler_options(config.num_warps, config.num_stages),
    )  # fmt: skip
    antidiagonal_sums_kernel[(batch * heads, slab[1] - slab[0], triton.cdiv(key_blocks, 64))](
        levels, lse, scores, slab[0], rows, triton.cdiv(q_len, stride), query_blocks, key_blocks, per_block,
        WIDTH=config.width, PIECES=config.pieces, CAUSAL=causal, ROWS=16, COLUMNS=64,
        **compiler_options(num_warps=4),
    )  # fmt: skip


def _empty_scores(q: Tensor, k: Tensor, block: int) -> Float[Tensor, "b h nq nk"]:
    return q.new_empty(*q.shape[:2], -(-q.shape[2] // block), -(-k.shape[2] // block), dtype=torch.float32)


@torch.library.custom_op(
    "sparse_kernels::antidiagonal_scores_triton",
    mutates_args=(),
    schema="(Tensor q, Tensor k, int block, int stride, float scale, bool causal) -> Tensor",
)
def antidiagonal_scores_triton(q: Tensor, k: Tensor, block: int, stride: int, scale: float, causal: bool) -> Tensor:
    """The custom operator behind antidiagonal_scores: one graph node under torch.compile."""
    q, k = rows(q), rows(k)
    per_block = block // stride
    config = antidiagonal_config(q.shape[-1], q.element_size(), per_block, shared_memory=device_limits(q)[0])
    scores = _empty_scores(q, k, block)
    numbers = q.shape[0] * q.shape[1] * per_block * scores.shape[3] * config.pieces  # between the kernels, a block
    step = min(MOST_BLOCKS, max(1, LEVEL_NUMBERS // numbers))
    with torch.cuda.device_of(q):
        for start in range(0, scores.shape[2], step):
            slab = (start, min(start + step, scores.shape[2]))
            _launch_slab(q, k, scores, config, slab, per_block, stride, scale, causal)
    return scores


@antidiagonal_scores_triton.register_fake
def _fake_scores(q: Tensor, k: Tensor, block: int, stride: int, scale: float, causal: bool) -> Tensor:
    return _empty_scores(q, k, block)
