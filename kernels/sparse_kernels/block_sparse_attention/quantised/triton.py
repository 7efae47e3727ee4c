"""Block-sparse attention with 8-bit operands in Triton: q k in int8, or everything in fp8 (E4M3).

The scales of a query block and a key block are folded into the scale of the softmax. Names as in the plain kernel.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from sparse_kernels._tensors import contiguous, rows
from sparse_kernels._triton import LOG2E, LOG2E_INSIDE, device_limits, jit, shared_strides, tl
from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention import triton as plain
from sparse_kernels.block_sparse_attention.quantised.rounding import (
    key_mean,
    mean_logits,
    round_blocks,
    round_channels,
)
from sparse_kernels.block_sparse_attention.triton_windows import list_windows, visited_keys

FP8_CAPABILITY = (8, 9)
SMALLEST_DEPTH = 32  # products of bytes take at least as many channels


def can_run(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, precision: str) -> str | None:
    """Return why the Triton kernel cannot take these tensors, or None when it can."""
    reason = plain.can_run(q, k, v, block_map)
    if reason is not None or precision != "fp8" or not q.is_cuda:
        return reason
    capability = torch.cuda.get_device_capability(q.device)
    if capability >= FP8_CAPABILITY:
        return None
    return f"fp8 needs compute capability 8.9, this device has {capability[0]}.{capability[1]}; precision='int8' runs"


def forward(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b hkv t d"], v: Float[Tensor, "b hkv t d"], block_map: BlockMap,
    q_order: Int[Tensor, "#b #h s"] | None, kv_order: Int[Tensor, "#b #h t"] | None, scale: float, precision: str,
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:  # fmt: skip
    """Return the output and the natural-log LSE, both in the callers' row order."""
    fields = (block_map.counts, block_map.indices, block_map.q_offsets, block_map.kv_offsets)
    return block_sparse_attention_triton_quantised(q, k, v, *fields, q_order, kv_order, scale, precision)


def launch_config(
    head_dim: int, itemsize: int, block_sizes: tuple[float, float], *, indirections: int, shared_memory: int,
    asynchronous_mma: bool,
) -> plain.LaunchConfig:  # fmt: skip
    """Return the plain kernel's tiles for mean (query, key) block sizes, head_dim padded to what bytes need.

    `indirections`: loads before the address of a key row is known, one for an order and one for windows.
    """
    config = plain.launch_config(
        head_dim, itemsize, block_sizes[0], 128 if block_sizes[1] > 64 else 64,
        shared_memory=shared_memory, asynchronous_mma=False,
    )  # fmt: skip
    block_n = max(SMALLEST_DEPTH, 64 if asynchronous_mma else config.block_n)
    # The compiler shares its stages evenly between the indirections and the rows they lead to.
    stages = (1 + indirections) * (config.num_stages - 1) + 1
    return config._replace(block_d=max(SMALLEST_DEPTH, config.block_d), block_n=block_n, num_stages=stages)


@jit
def _key_block_border(p_index, p_kv_offsets, valid):
    """Positions at which one listed key block begins and ends."""
    i_block = tl.load(p_index, mask=valid, other=0)
    return tl.load(p_kv_offsets + i_block), tl.load(p_kv_offsets + i_block + 1)


@jit
def _count_steps(p_index, p_kv_offsets, count, BLOCK_N: tl.constexpr):
    """Loop length: every listed key block is walked in pieces of BLOCK_N, an empty one takes one masked step."""
    steps = 0
    for start in range(0, count, 128):
        i_entry = start + tl.arange(0, 128)
        valid = i_entry < count
        i_block = tl.load(p_index + i_entry, mask=valid, other=0)
        size = tl.load(p_kv_offsets + i_block + 1) - tl.load(p_kv_offsets + i_block)
        pieces = tl.maximum((size + BLOCK_N - 1) // BLOCK_N, 1)
        steps += tl.sum(tl.where(valid, pieces, 0))
    return steps


@jit
def quantised_attention_fwd_kernel(
    p_q, p_k, p_v, p_q_scales, p_k_scales, p_v_scales, p_out, p_lse, p_tiles, p_indices, p_visited, p_kv_offsets,
    p_q_order, p_kv_order, v_strides, out_strides, tile_strides, index_strides, kv_offset_strides, q_order_strides,
    kv_order_strides, q_len, kv_len, heads_per_key_head, heads_per_kv_head, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOWS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One tile of queries. q, k and their scales lie in the order of the map, v and the outputs in the callers'."""
    i_b, i_h, heads = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    p_tile = p_tiles + i_b * tile_strides[0] + i_h * tile_strides[1] + tl.program_id(0) * 4
    i_block, first, end, count = tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 2), tl.load(p_tile + 3)
    if first >= end:
        return

    i_d = tl.arange(0, BLOCK_D)
    in_head = i_d < HEAD_DIM
    i_position = first + tl.arange(0, BLOCK_M)
    in_tile = i_position < end
    q_mask = in_tile[:, None] & in_head[None, :]
    i_query = (i_b * heads + i_h) * q_len + i_position
    b_q = tl.load(p_q + i_query[:, None] * HEAD_DIM + i_d[None, :], mask=q_mask, other=0.0)
    q_factor = tl.load(p_q_scales + (i_b * heads + i_h) * q_len + first) * scale_log2

    i_h_k, i_h_kv = i_h // heads_per_key_head, i_h // heads_per_kv_head
    first_key = (i_b * (heads // heads_per_key_head) + i_h_k) * kv_len
    p_k += first_key * HEAD_DIM
    p_k_scales += first_key
    p_v += i_b * v_strides[0] + i_h_kv * v_strides[1]
    i_list = i_b * index_strides[0] + i_h * index_strides[1] + i_block.to(tl.int64) * index_strides[2]
    p_index = p_indices + i_list
    p_kv_offsets += i_b * kv_offset_strides[0] + i_h * kv_offset_strides[1]
    if p_kv_order is not None:
        p_kv_order += i_b * kv_order_strides[0] + i_h * kv_order_strides[1]

    # The lowest finite float instead of -inf: a fully masked step then gives exp2(-inf) = 0 and never inf - inf.
    b_max = tl.full([BLOCK_M], -3.4e38, tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    i_column = tl.arange(0, BLOCK_N)
    if WINDOWS:
        p_visited += i_list
        steps = count
    else:
        i_entry = 0
        start, stop = _key_block_border(p_index, p_kv_offsets, count > 0)
        steps = _count_steps(p_index, p_kv_offsets, count, BLOCK_N)
    for step in range(steps):
        if WINDOWS:
            i_key = tl.load(p_index + step) + i_column
            in_block = visited_keys(tl.load(p_visited + step), i_column)
        else:
            i_key = start + i_column
            in_block = i_key < stop
            factor = q_factor * tl.load(p_k_scales + start, mask=start < stop, other=0.0)
            factor = tl.where(factor == 0.0, 1e-30, factor)  # masked scores stay -inf under it
        if p_kv_order is None:
            i_key_row = i_key.to(tl.int64)
        else:
            i_key_row = tl.load(p_kv_order + i_key, mask=in_block, other=0)
        kv_mask = in_block[:, None] & in_head[None, :]
        i_k = i_key.to(tl.int64)
        b_k = tl.load(p_k + i_k[:, None] * HEAD_DIM + i_d[None, :], mask=kv_mask, other=0.0)
        b_v = tl.load(p_v + i_key_row[:, None] * v_strides[2] + i_d[None, :], mask=kv_mask, other=0.0)

        b_score = tl.dot(b_q, tl.trans(b_k)).to(tl.float32)
        if WINDOWS:
            b_factor = q_factor * tl.load(p_k_scales + i_key, mask=in_block, other=0.0)
            b_score = tl.where(in_block[None, :], b_score * b_factor[None, :], float("-inf"))
            b_new_max = tl.maximum(b_max, tl.max(b_score, 1))
            b_weight = tl.exp2(b_score - b_new_max[:, None])
        else:
            b_score = tl.where(in_block[None, :], b_score, float("-inf"))
            b_new_max = tl.maximum(b_max, tl.max(b_score, 1) * factor)
            b_weight = tl.exp2(b_score * factor - b_new_max[:, None])
        b_decay = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_decay + tl.sum(b_weight, 1)
        if FP8:
            # A product of its own each step: tensor cores add up E4M3 with fewer bits than float32.
            b_out = b_out * b_decay[:, None] + tl.dot((b_weight * 448.0).to(b_v.dtype), b_v)
        else:
            b_out = tl.dot(b_weight.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision="ieee")
        b_max = b_new_max

        if not WINDOWS:
            start += BLOCK_N
            leaves = start >= stop
            i_entry += leaves.to(tl.int32)
            next_start, next_stop = _key_block_border(p_index + i_entry, p_kv_offsets, leaves & (i_entry < count))
            start = tl.where(leaves, next_start, start)
            stop = tl.where(leaves, next_stop, stop)

    b_empty = b_sum == 0.0
    b_sum = tl.where(b_empty, 1.0, b_sum)
    b_lse = tl.where(b_empty, float("-inf"), (b_max + tl.log2(b_sum)) * (1.0 / LOG2E_INSIDE))
    b_out = b_out / b_sum[:, None]
    if FP8:
        p_v_scales += (i_b * (heads // heads_per_kv_head) + i_h_kv) * HEAD_DIM
        b_out *= tl.load(p_v_scales + i_d, mask=in_head, other=0.0)[None, :] / 448.0
    if p_q_order is None:
        i_row = i_position.to(tl.int64)
    else:
        p_q_order += i_b * q_order_strides[0] + i_h * q_order_strides[1]
        i_row = tl.load(p_q_order + i_position, mask=in_tile, other=0)
    p_out += i_b * out_strides[0] + i_h * out_strides[1]
    tl.store(p_out + i_row[:, None] * out_strides[2] + i_d[None, :], b_out.to(p_out.dtype.element_ty), mask=q_mask)
    tl.store(p_lse + (i_b * heads + i_h) * q_len + i_row, b_lse, mask=in_tile)


@torch.library.custom_op(
    "sparse_kernels::block_sparse_attention_triton_quantised",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor counts, Tensor indices, Tensor q_offsets, Tensor kv_offsets, "
    "Tensor? q_order, Tensor? kv_order, float scale, str precision) -> (Tensor, Tensor)",
)
def block_sparse_attention_triton_quantised(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b hkv t d"], v: Float[Tensor, "b hkv t d"],
    counts: Int32[Tensor, "#b #h nq"], indices: Int32[Tensor, "#b #h nq m"], q_offsets: Int32[Tensor, "#b #h nq1"],
    kv_offsets: Int32[Tensor, "#b #h nk1"], q_order: Int[Tensor, "#b #h s"] | None,
    kv_order: Int[Tensor, "#b #h t"] | None, scale: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The custom operator behind forward: round, then one launch."""
    out, lse = plain._empty_outputs(q)
    if scale < 0:
        q, scale = -q, -scale
    heads, fp8 = q.shape[1], precision == "fp8"
    mean = None if fp8 else key_mean(k)
    queries = round_blocks(q, q_offsets, q_order, heads, precision)
    keys = round_blocks(k, kv_offsets, kv_order, heads, precision, mean)
    values, value_scales = round_channels(v) if fp8 else (v, None)
    _launch(
        out, lse, (queries.values.contiguous(), keys.values.contiguous(), rows(values)),
        (queries.scales.contiguous(), keys.scales.contiguous(), value_scales),
        (counts, indices.contiguous(), q_offsets, kv_offsets.contiguous()),
        [contiguous(q_order), contiguous(kv_order)], scale, q.element_size(),
    )  # fmt: skip
    return out, lse if mean is None else lse + mean_logits(q, mean, scale)


@block_sparse_attention_triton_quantised.register_fake
def _fake_outputs(q: Float[Tensor, "b h s d"], *_: object) -> tuple[Tensor, Tensor]:
    return plain._empty_outputs(q)


def _launch(
    out: Tensor, lse: Tensor, rows: tuple[Tensor, Tensor, Tensor], scales: tuple[Tensor, Tensor, Tensor | None],
    fields: tuple[Tensor, Tensor, Tensor, Tensor], orders: list[Tensor | None], scale: float, itemsize: int,
) -> None:  # fmt: skip
    (q, k, v), (counts, indices, q_offsets, kv_offsets) = rows, fields
    b, heads, q_len, head_dim = q.shape
    variable = kv_offsets.shape[:2] != (1, 1)
    key_block = math.inf if variable else k.shape[2] / (kv_offsets.shape[-1] - 1)
    shared_memory, asynchronous_mma = device_limits(q)
    config = launch_config(
        head_dim, itemsize, (q_len / counts.shape[-1], key_block), indirections=variable + (orders[1] is not None),
        shared_memory=shared_memory, asynchronous_mma=asynchronous_mma,
    )  # fmt: skip
    with torch.cuda.device_of(q):
        visited = None
        if variable:
            counts, indices, visited = list_windows(counts, indices, kv_offsets, k.shape[2], config.block_n)
        tiles = plain.query_tiles(counts, q_offsets, q_len, config.block_m)
        quantised_attention_fwd_kernel[(tiles.shape[2], heads, b)](
            q, k, v, *scales, out, lse, tiles, indices, visited, kv_offsets, *orders, v.stride()[:3], out.stride()[:3],
            shared_strides(tiles), shared_strides(indices, 3), shared_strides(kv_offsets), shared_strides(orders[0]),
            shared_strides(orders[1]), q_len, k.shape[2], heads // k.shape[1], heads // v.shape[1],
            max(scale, plain.SMALLEST_SCALE) * LOG2E,
            HEAD_DIM=head_dim, BLOCK_D=config.block_d, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            WINDOWS=variable, FP8=v.element_size() == 1, **config.options(),
        )  # fmt: skip
