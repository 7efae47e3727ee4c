"""Listed key blocks as windows of the keys in their order, so that a tile of keys can cross the borders of blocks.

Blocks from k-means hold some 64 keys on average: taken alone, each would leave a third of its last tile empty. A window
begins at a visited key and takes all visited ones up to its end along, so that neighbours in the order share tiles, and
a tile is one stretch of memory, as the copy engine of Hopper wants it.
"""

from __future__ import annotations

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from sparse_kernels._triton import compiler_options, jit, shared_strides, tl

LARGEST_WINDOW = 64  # keys: one bit each says which are visited


@jit
def visited_keys(visited, i_column):
    """Which of a window's keys are visited; shifts of 64 bits would take a third more registers."""
    b_visited = tl.where(i_column < 32, visited.to(tl.int32), (visited >> 32).to(tl.int32))
    return ((b_visited >> (i_column % 32)) & 1) != 0


@jit
def list_windows_kernel(
    p_counts, p_indices, p_kv_offsets, p_starts, p_visited, p_window_counts, count_strides, index_strides,
    kv_offset_strides, capacity, WINDOW: tl.constexpr,
):  # fmt: skip
    """One query block: where each window begins, and in bit n whether its key n is visited."""
    i_b, i_h, i_block = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0)
    i_line = (i_b * tl.num_programs(1) + i_h) * tl.num_programs(0) + i_block
    p_indices += i_b * index_strides[0] + i_h * index_strides[1] + i_block.to(tl.int64) * index_strides[2]
    p_kv_offsets += i_b * kv_offset_strides[0] + i_h * kv_offset_strides[1]
    p_starts += i_line * capacity
    p_visited += i_line * capacity
    written = 0
    start = -WINDOW
    visited = tl.cast(0, tl.int64)
    for entry in range(tl.load(p_counts + i_b * count_strides[0] + i_h * count_strides[1] + i_block)):
        p_border = p_kv_offsets + tl.load(p_indices + entry)
        i_key, stop = tl.load(p_border), tl.load(p_border + 1)
        while i_key < stop:
            fresh = (i_key < start) | (i_key >= start + WINDOW)
            written += fresh.to(tl.int32)
            start = tl.where(fresh, i_key, start)
            visited = tl.where(fresh, 0, visited)
            keys = tl.minimum(stop, start + WINDOW) - i_key
            ones = tl.where(keys < 64, (tl.cast(1, tl.int64) << (keys % 64)) - 1, -1)
            visited |= ones << (i_key - start)
            # Written again with every block that it holds keys of: nobody waits for a store.
            tl.store(p_starts + written - 1, start, mask=written <= capacity)
            tl.store(p_visited + written - 1, visited, mask=written <= capacity)
            i_key += keys
    # More than there is room for only where a list names a block twice, which nobody checks on a GPU.
    tl.store(p_window_counts + i_line, tl.minimum(written, capacity))


def list_windows(
    counts: Int32[Tensor, "#b #h nq"],
    indices: Int32[Tensor, "#b #h nq m"],
    kv_offsets: Int32[Tensor, "#b #h nk1"],
    kv_len: int,
    window: int,
) -> tuple[Int32[Tensor, "#b #h nq"], Int32[Tensor, "#b #h nq w"], Int64[Tensor, "#b #h nq w"]]:
    """Return how many windows each query block visits, where they begin, and which of their keys are visited.

    Room for them follows from the shapes alone. Lists in rising order, as `BlockMap.from_dense` makes them, need least.
    """
    counts, indices, kv_offsets = counts.contiguous(), indices.contiguous(), kv_offsets.contiguous()
    batch, heads = torch.broadcast_shapes(counts.shape[:2], indices.shape[:2], kv_offsets.shape[:2])
    blocks = counts.shape[2]
    # A visited block of n keys begins at most n // window + 1 windows.
    capacity = indices.shape[3] + kv_len // window
    starts = counts.new_empty(batch, heads, blocks, capacity)
    visited = starts.new_empty(starts.shape, dtype=torch.int64)
    window_counts = counts.new_empty(batch, heads, blocks)
    list_windows_kernel[(blocks, heads, batch)](
        counts, indices, kv_offsets, starts, visited, window_counts, shared_strides(counts),
        shared_strides(indices, 3), shared_strides(kv_offsets), capacity, WINDOW=window,
        **compiler_options(num_warps=1),
    )  # fmt: skip
    return window_counts, starts, visited
