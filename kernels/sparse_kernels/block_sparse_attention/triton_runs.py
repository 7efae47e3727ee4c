"""Listed key blocks as runs of at most 16 keys, so that a tile of keys can cross the borders of blocks.

Blocks from k-means hold some 75 keys on average: taken alone, each would leave a third of its last tile empty.
"""

from __future__ import annotations

import torch
from jaxtyping import Int32
from torch import Tensor

from sparse_kernels._triton import compiler_options, jit, shared_strides, tl

RUN = 16  # the rows of one product instruction; below that, reading gets slower than the padding that it saves


@jit
def list_runs_kernel(
    p_counts, p_indices, p_kv_offsets, p_runs, p_run_counts, count_strides, index_strides, kv_offset_strides, capacity,
    RUN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One query block: a run is its first position times 32, plus how many keys it has."""
    i_b, i_h, i_block = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0)
    i_line = (i_b * tl.num_programs(1) + i_h) * tl.num_programs(0) + i_block
    p_indices += i_b * index_strides[0] + i_h * index_strides[1] + i_block.to(tl.int64) * index_strides[2]
    p_kv_offsets += i_b * kv_offset_strides[0] + i_h * kv_offset_strides[1]
    p_runs += i_line * capacity
    written = 0
    for entry in range(tl.load(p_counts + i_b * count_strides[0] + i_h * count_strides[1] + i_block)):
        p_border = p_kv_offsets + tl.load(p_indices + entry)
        start, stop = tl.load(p_border), tl.load(p_border + 1)
        for first in range(start, stop, RUN * LANES):
            i_key = first + tl.arange(0, LANES) * RUN
            b_run = i_key * 32 + tl.minimum(stop - i_key, RUN)
            tl.store(p_runs + written + (i_key - start) // RUN, b_run, mask=i_key < stop)
        written += (stop - start + RUN - 1) // RUN
    tl.store(p_run_counts + i_line, written)


def list_runs(
    counts: Int32[Tensor, "#b #h nq"],
    indices: Int32[Tensor, "#b #h nq m"],
    kv_offsets: Int32[Tensor, "#b #h nk1"],
    kv_len: int,
) -> tuple[Int32[Tensor, "#b #h nq"], Int32[Tensor, "#b #h nq runs"]]:
    """Return how many runs each query block visits, and the runs; room for them follows from the shapes alone."""
    counts, indices, kv_offsets = counts.contiguous(), indices.contiguous(), kv_offsets.contiguous()
    batch, heads = torch.broadcast_shapes(counts.shape[:2], indices.shape[:2], kv_offsets.shape[:2])
    blocks = counts.shape[2]
    # A visited block of n keys has at most n // 16 + 1 runs.
    capacity = indices.shape[3] + kv_len // RUN
    runs, run_counts = counts.new_empty(batch, heads, blocks, capacity), counts.new_empty(batch, heads, blocks)
    list_runs_kernel[(blocks, heads, batch)](
        counts, indices, kv_offsets, runs, run_counts, shared_strides(counts), shared_strides(indices, 3),
        shared_strides(kv_offsets), capacity, RUN=RUN, LANES=32, **compiler_options(num_warps=1),
    )  # fmt: skip
    return run_counts, runs
