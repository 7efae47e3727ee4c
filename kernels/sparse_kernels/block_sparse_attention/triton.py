"""Block-sparse attention forward as one Triton kernel (online softmax after Dao, arXiv 2307.08691).

Names: p_ pointers, b_ block values, i_ indices, capitals are compile-time constants. Scores are in log2 units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from sparse_kernels._checks import has_tangent
from sparse_kernels._tensors import contiguous, rows
from sparse_kernels._triton import (
    BARRIERS,
    LOG2E,
    LOG2E_INSIDE,
    compiler_options,
    device_limits,
    grid_reason,
    jit,
    shared_strides,
    start_reason,
    tl,
    triton,
)
from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention.summaries import Summaries, heard_weights
from sparse_kernels.block_sparse_attention.triton_order import in_order
from sparse_kernels.block_sparse_attention.triton_windows import LARGEST_WINDOW, list_windows, visited_keys
from sparse_kernels.tiles import cut_blocks

SMALLEST_TILE, LARGEST_TILE = 16, 128  # keys; the smallest are those of one product instruction
SMALLEST_SCALE = 1e-30  # stands for zero: scores that are masked stay -inf under it


class LaunchConfig(NamedTuple):
    """Tile shape and compiler options of one launch."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    tma: bool  # whether the copy engine loads keys and values

    def options(self) -> dict[str, int | bool]:
        """Compiler options."""
        return compiler_options(self.num_warps, self.num_stages)


def can_run(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> str | None:
    """Says why the Triton kernel cannot take these tensors, or None when it can."""
    if triton is None:
        return "triton is not installed (pip install triton)"
    dtypes, sizes = [x.dtype for x in (q, k, v)], [x.shape[-1] for x in (q, k, v)]
    if dtypes[0] not in (torch.float16, torch.bfloat16, torch.float32) or len(set(dtypes)) > 1:
        return f"the Triton kernel takes one of float16, bfloat16, float32 for q, k and v, given {dtypes}"
    if sizes[0] % 16 or not 16 <= sizes[0] <= 256 or len(set(sizes)) > 1:
        return f"the Triton kernel takes one head_dim, a multiple of 16 up to 256, given {sizes}"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "the Triton kernel has no backward pass; call it under torch.no_grad() or use backend='reference'"
    if has_tangent(q, k, v):
        return "the Triton kernel has no forward-mode derivative; use backend='reference'"
    reason = grid_reason(batches=q.shape[0], heads=q.shape[1])
    if reason is not None:
        return reason
    interpreted = not isinstance(block_sparse_attention_fwd_kernel, triton.JITFunction)
    tensors = (q, k, v, block_map.counts, block_map.indices, block_map.q_offsets, block_map.kv_offsets)
    if not interpreted and not all(tensor.is_cuda for tensor in tensors):
        return f"the Triton kernel needs CUDA tensors, given {sorted({str(tensor.device) for tensor in tensors})}"
    return start_reason(block_sparse_attention_fwd_kernel, q)


def forward(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h_kv t d"],
    v: Float[Tensor, "b h_kv t d"],
    block_map: BlockMap,
    q_order: Int64[Tensor, "#b #h s"] | None,
    kv_order: Int64[Tensor, "#b #h t"] | None,
    scale: float,
    summaries: Summaries | None = None,
    lse_of_visited: bool = False,
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    """Attention over the listed blocks: the output and the natural-log LSE, both in the callers' row order."""
    fields = (block_map.counts, block_map.indices, block_map.q_offsets, block_map.kv_offsets)
    key_block = block_map.key_block or 0
    if summaries is None:
        return block_sparse_attention_triton(q, k, v, *fields, q_order, kv_order, scale, key_block=key_block)
    keys, values, weights = summaries.of_heads()
    heard = heard_weights(block_map, weights) * LOG2E
    means = (keys.to(q.dtype), values.to(q.dtype), heard)
    return block_sparse_attention_triton(q, k, v, *fields, q_order, kv_order, scale, *means, lse_of_visited, key_block)


def launch_config(
    head_dim: int, itemsize: int, query_block: float, key_block: int, *, shared_memory: int, asynchronous_mma: bool
) -> LaunchConfig:
    """Tile shape for query blocks of a mean size and key blocks of one size (0: windows), in rows.

    `shared_memory`: of one thread block in bytes. `asynchronous_mma`: the device multiplies from shared memory (Hopper
    on).
    """
    block_d = triton.next_power_of_2(head_dim)
    key_block = key_block if key_block % SMALLEST_TILE == 0 else 0
    # The accumulator has to stay in registers; float32 products run without tensor cores, which takes more of them.
    if itemsize == 4:
        block_m, block_n, num_warps = 32, 32 if block_d <= 64 else 16, 4 if block_d <= 64 else 8
    elif asynchronous_mma:
        block_m, block_n, num_warps = _for_asynchronous_mma(block_d, query_block, key_block)
    else:
        block_m = 64 if query_block <= 64 or block_d == 256 else 128
        block_n = 64 if block_d <= 64 else 32
        num_warps = 8 if block_m == 128 or block_d == 256 else 4
    block_n = min(block_n, key_block & -key_block if key_block else LARGEST_WINDOW)

    def needed(buffers: int) -> int:
        return block_d * itemsize * (block_m + 2 * block_n * buffers)

    # With three, windows spill registers on Hopper and what came after it, and leave room for fewer tiles at a time.
    some = (2,) if asynchronous_mma and itemsize == 2 and not key_block else (3, 2)
    stages = next((buffers for buffers in some if needed(buffers) <= shared_memory - BARRIERS), 1)
    return LaunchConfig(block_m, block_n, block_d, num_warps, stages, tma=asynchronous_mma and itemsize == 2)


def _for_asynchronous_mma(block_d: int, query_block: float, key_block: int) -> tuple[int, int, int]:
    """Return the (queries, keys, warps) of a tile that were fastest on an H200.

    Windows are those of clusters, whose sizes differ: half as many rows leave fewer places of the last tile empty.
    """
    if block_d == 256:
        return 64, 64, 8
    if key_block and block_d <= 64:
        return 64, 128, 4
    return (128, 128, 8) if query_block > 64 and key_block and key_block % 128 == 0 else (64, 64, 4)


def query_tiles(
    counts: Int32[Tensor, "b h nq"], q_offsets: Int32[Tensor, "#b #h nq+1"], q_len: int, block_m: int
) -> Int32[Tensor, "b h tiles 4"]:
    """Cuts query blocks into tiles of at most block_m rows: (query block, first row, end row, count), longest first.

    The number of tiles is bounded from shapes alone, so nothing waits for the device; surplus tiles have no rows.
    """
    block, first, end, _ = cut_blocks(q_offsets, q_len, block_m)
    heads = torch.broadcast_shapes(counts.shape[:2], q_offsets.shape[:2])
    block, first, end = (tile.expand(*heads, -1) for tile in (block, first, end))
    count = counts.expand(*heads, -1).gather(-1, block)
    launch_order = torch.where(first < end, count, -1).argsort(dim=-1, descending=True, stable=True)
    return torch.stack([tile.gather(-1, launch_order) for tile in (block, first, end, count)], dim=-1).to(torch.int32)


@jit
def _natural_lse(b_max, b_sum):
    """What the softmax over all that was seen so far divides by, as a logarithm; -inf where nothing was."""
    b_log = b_max + tl.log2(tl.where(b_sum == 0.0, 1.0, b_sum))
    return tl.where(b_sum == 0.0, float("-inf"), b_log * (1.0 / LOG2E_INSIDE))


@jit
def _hear_summaries(
    b_q, b_max, b_sum, b_out, p_key, p_value, p_weight, count, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Let the summaries of a head answer; a weight, in log2 units, is -inf where the tile visits the block itself."""
    i_d = tl.arange(0, BLOCK_D)
    for start in range(0, count, BLOCK_N):
        i_summary = start + tl.arange(0, BLOCK_N)
        i_place = i_summary[:, None] * HEAD_DIM + i_d[None, :]
        mask = (i_summary < count)[:, None] & (i_d < HEAD_DIM)[None, :]
        b_k = tl.load(p_key + i_place, mask=mask, other=0.0)
        b_v = tl.load(p_value + i_place, mask=mask, other=0.0)
        b_heard = tl.load(p_weight + i_summary, mask=i_summary < count, other=float("-inf"))
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2 + b_heard[None, :]
        b_new_max = tl.maximum(b_max, tl.max(b_score, 1))
        b_weight = tl.exp2(b_score - b_new_max[:, None])
        b_decay = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_decay + tl.sum(b_weight, 1)
        b_out = tl.dot(b_weight.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision=PRECISION)
        b_max = b_new_max
    return b_max, b_sum, b_out


@jit
def block_sparse_attention_fwd_kernel(
    p_q, p_k, p_v, p_out, p_lse, p_tiles, p_indices, p_visited, p_q_order, p_summary_keys, p_summary_values,
    p_summary_weights, q_strides, k_strides, v_strides, out_strides, tile_strides, index_strides, q_order_strides,
    summary_strides, weight_strides, q_len, kv_len, heads_per_kv_head, summaries, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    KEY_BLOCK: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    LSE_OF_VISITED: tl.constexpr,
):  # fmt: skip
    """One tile of queries.

    p_indices lists key blocks of KEY_BLOCK keys; where that is 0, first keys of windows of BLOCK_N keys, whose visited
    ones have a bit in p_visited.
    """
    i_b, i_h = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    p_tile = p_tiles + i_b * tile_strides[0] + i_h * tile_strides[1] + tl.program_id(0) * 4
    i_block, first, end, count = tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 2), tl.load(p_tile + 3)
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
    q_mask = in_tile[:, None] & in_head[None, :]
    p_q += i_b * q_strides[0] + i_h * q_strides[1]
    b_q = tl.load(p_q + i_row[:, None] * q_strides[2] + i_d[None, :], mask=q_mask, other=0.0)

    i_h_kv = i_h // heads_per_kv_head
    if not TMA:
        p_k += i_b * k_strides[0] + i_h_kv * k_strides[1]
        p_v += i_b * v_strides[0] + i_h_kv * v_strides[1]
    i_list = i_b * index_strides[0] + i_h * index_strides[1] + i_block.to(tl.int64) * index_strides[2]
    p_index = p_indices + i_list

    # The lowest finite float instead of -inf: a fully masked step then gives exp2(-inf) = 0 and never inf - inf.
    b_max = tl.full([BLOCK_M], -3.4e38, tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    i_column = tl.arange(0, BLOCK_N)
    PIECES: tl.constexpr = KEY_BLOCK // BLOCK_N if KEY_BLOCK > 0 else 1
    STEP: tl.constexpr = KEY_BLOCK if KEY_BLOCK > 0 else 1
    SUMMARIES: tl.constexpr = BLOCK_N if BLOCK_N < 32 else 32  # of a tile: shared memory is counted for BLOCK_N
    steps = count * PIECES
    start = tl.load(p_index, mask=count > 0, other=0) * STEP
    if KEY_BLOCK == 0:
        p_visited += i_list
        visited = tl.load(p_visited, mask=count > 0, other=0)
    for step in range(steps):
        i_key = start + i_column
        if KEY_BLOCK > 0:
            in_block = i_key < kv_len
        else:
            in_block = visited_keys(visited, i_column)
        if TMA:
            b_k = p_k.load([i_b.to(tl.int32), i_h_kv.to(tl.int32), start, 0]).reshape(BLOCK_N, BLOCK_D)
            b_v = p_v.load([i_b.to(tl.int32), i_h_kv.to(tl.int32), start, 0]).reshape(BLOCK_N, BLOCK_D)
        else:
            i_key_row = i_key.to(tl.int64)
            kv_mask = in_block[:, None] & in_head[None, :]
            b_k = tl.load(p_k + i_key_row[:, None] * k_strides[2] + i_d[None, :], mask=kv_mask, other=0.0)
            b_v = tl.load(p_v + i_key_row[:, None] * v_strides[2] + i_d[None, :], mask=kv_mask, other=0.0)
        # Loaded a step before it is needed: nothing has to wait for it.
        following = step + 1
        i_next = tl.load(p_index + following // PIECES, mask=following < steps, other=0)
        start = i_next * STEP + following % PIECES * BLOCK_N
        if KEY_BLOCK == 0:
            visited = tl.load(p_visited + following, mask=following < steps, other=0)

        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_score = tl.where(in_block[None, :], b_score, float("-inf"))
        # The scale is above zero: the maximum is scaled once a row, and a score in the subtraction's own instruction.
        b_new_max = tl.maximum(b_max, tl.max(b_score, 1) * scale_log2)
        b_weight = tl.exp2(b_score * scale_log2 - b_new_max[:, None])
        b_decay = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_decay + tl.sum(b_weight, 1)
        b_out = tl.dot(b_weight.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision=PRECISION)
        b_max = b_new_max

    b_lse = _natural_lse(b_max, b_sum)
    if p_summary_keys is not None:
        i_head = i_b * summary_strides[0] + i_h * summary_strides[1]
        i_heard = i_b * weight_strides[0] + i_h * weight_strides[1] + i_block.to(tl.int64) * weight_strides[2]
        b_max, b_sum, b_out = _hear_summaries(
            b_q, b_max, b_sum, b_out, p_summary_keys + i_head, p_summary_values + i_head, p_summary_weights + i_heard,
            summaries, scale_log2, HEAD_DIM, BLOCK_D, SUMMARIES, PRECISION,
        )  # fmt: skip
        if not LSE_OF_VISITED:
            b_lse = _natural_lse(b_max, b_sum)
    b_out = b_out / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]
    p_out += i_b * out_strides[0] + i_h * out_strides[1]
    tl.store(p_out + i_row[:, None] * out_strides[2] + i_d[None, :], b_out.to(p_out.dtype.element_ty), mask=q_mask)
    tl.store(p_lse + (i_b * tl.num_programs(1) + i_h) * q_len + i_row, b_lse, mask=in_tile)


def _empty_outputs(q: Float[Tensor, "b h s d"]) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    out = torch.empty_like(q)  # keeps a transposed layout, so the way back to b s h d stays a view
    if out.stride(-1) != 1:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _device_config(q: Tensor, query_block: float, key_block: int) -> LaunchConfig:
    shared_memory, asynchronous_mma = device_limits(q)
    return launch_config(
        q.shape[-1],
        q.element_size(),
        query_block,
        key_block,
        shared_memory=shared_memory,
        asynchronous_mma=asynchronous_mma,
    )


def can_describe(x: Tensor) -> bool:
    """Return whether the copy engine can read the tensor: every row begins at a multiple of 16 bytes."""
    steps = [stride * x.element_size() for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
    return x.data_ptr() % 16 == 0 and all(step > 0 and step % 16 == 0 for step in steps)


def described(x: Tensor, config: LaunchConfig) -> Any:
    """Return the tensor as the copy engine of Hopper and later reads it: tiles of a head's rows, zeros behind them."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    # The step of what is there once is never made, but looked at.
    strides = [stride if size > 1 else x.shape[3] for size, stride in zip(x.shape, x.stride(), strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides[:3], 1], [1, 1, config.block_n, config.block_d])


@torch.library.custom_op(
    "sparse_kernels::block_sparse_attention_triton",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor counts, Tensor indices, Tensor q_offsets, Tensor kv_offsets, "
    "Tensor? q_order, Tensor? kv_order, float scale, Tensor? summary_keys=None, Tensor? summary_values=None, "
    "Tensor? summary_weights=None, bool lse_of_visited=False, int key_block=0) -> (Tensor, Tensor)",
)
def block_sparse_attention_triton(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h_kv t d"],
    v: Float[Tensor, "b h_kv t d"],
    counts: Int32[Tensor, "#b #h nq"],
    indices: Int32[Tensor, "#b #h nq m"],
    q_offsets: Int32[Tensor, "#b #h nq+1"],
    kv_offsets: Int32[Tensor, "#b #h nk+1"],
    q_order: Int[Tensor, "#b #h s"] | None,
    kv_order: Int[Tensor, "#b #h t"] | None,
    scale: float,
    summary_keys: Float[Tensor, "#b #h nk d"] | None = None,
    summary_values: Float[Tensor, "#b #h nk d"] | None = None,
    summary_weights: Float[Tensor, "#b #h nq nk"] | None = None,
    lse_of_visited: bool = False,
    key_block: int = 0,
) -> tuple[Tensor, Tensor]:
    """The custom operator behind forward: BlockMap fields as plain tensors, one graph node under torch.compile.

    `key_block` is the size of all key blocks but the last, 0 where it is not known.
    """
    out, lse = _empty_outputs(q)
    q, k, v = rows(q), rows(k), rows(v)
    q_order, kv_order = contiguous(q_order), contiguous(kv_order)
    indices, kv_offsets = indices.contiguous(), kv_offsets.contiguous()
    if scale < 0:
        q, scale = -q, -scale
    b, h, q_len, head_dim = q.shape
    key_block = min(key_block, triton.cdiv(k.shape[2], LARGEST_TILE) * LARGEST_TILE)  # one block is all there is
    config = _device_config(q, q_len / counts.shape[-1], key_block)
    uniform = key_block if key_block % config.block_n == 0 else 0
    with torch.cuda.device_of(q):
        if kv_order is not None:
            k, v = in_order(k, v, kv_order)
        visited = None
        if not uniform:
            counts, indices, visited = list_windows(counts, indices, kv_offsets, k.shape[2], config.block_n)
        tiles = query_tiles(counts, q_offsets, q_len, config.block_m)
        tma = config.tma and can_describe(k) and can_describe(v)
        keys, values = (described(x, config) for x in (k, v)) if tma else (k, v)
        block_sparse_attention_fwd_kernel[(tiles.shape[2], h, b)](
            q, keys, values, out, lse, tiles, indices, visited, q_order, summary_keys, summary_values, summary_weights,
            q.stride()[:3], k.stride()[:3], v.stride()[:3], out.stride()[:3], shared_strides(tiles),
            shared_strides(indices, 3), shared_strides(q_order), shared_strides(summary_keys),
            shared_strides(summary_weights, 3), q_len, k.shape[2], h // k.shape[1],
            0 if summary_keys is None else summary_keys.shape[2], max(scale, SMALLEST_SCALE) * LOG2E,
            HEAD_DIM=head_dim, BLOCK_D=config.block_d, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            KEY_BLOCK=uniform, TMA=tma, PRECISION="ieee",
            LSE_OF_VISITED=lse_of_visited, **config.options(),
        )  # fmt: skip
    return out, lse


@block_sparse_attention_triton.register_fake
def _fake_outputs(q: Float[Tensor, "b h s d"], *_: object) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)
