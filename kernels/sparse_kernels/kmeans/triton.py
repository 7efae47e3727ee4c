"""Lloyd's k-means as Triton kernels: distances and arg-min in one, means over sorted rows without atomics.

Names: p_ pointers, b_ block values, i_ indices, capitals are compile-time constants. Nothing waits for the device:
a head that has settled is told by the farthest move of its centroids, which the kernels read themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from sparse_kernels import _tensors
from sparse_kernels._triton import (
    BARRIERS,
    compiler_options,
    device_limits,
    grid_reason,
    jit,
    reason_against,
    tl,
    triton,
)
from sparse_kernels.kmeans.clusters import Clusters

CHUNK = 256  # sorted rows that one program sums: a cluster that holds nearly all rows is still shared by many
SUM_ROWS = 32  # of these, rows that are loaded at once
SMALLEST_TILE = 16  # centroids; those of one product instruction


class AssignConfig(NamedTuple):
    """Rows and centroids of one tile, and the compiler's options."""

    block_n: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int | bool]:
        """Compiler options."""
        return compiler_options(self.num_warps, self.num_stages)


def can_run(x: Tensor, centroids: Tensor) -> str | None:
    """Return why the Triton kernels cannot take these tensors, or None."""
    reason = grid_reason(heads_in_all=x.shape[0] * x.shape[1])
    return reason or reason_against(assign_kernel, {"x": x, "centroids": centroids})


def forward(
    x: Float[Tensor, "b h n d"],
    centroids: Float[Tensor, "b h k d"],
    iterations: int,
    tolerance: float,
    precision: str = "float32",
) -> Clusters:
    """Return the clusters of every head, as exact as float32 in either precision."""
    return Clusters(*kmeans_triton(x, centroids, iterations, tolerance))


def assign_config(head_dim: int, itemsize: int, *, shared_memory: int, asynchronous_mma: bool) -> AssignConfig:
    """Return the tile for rows of `head_dim` entries; half-precision centroids come as two parts, as long as float32.

    Two thread blocks share a processor, so that one multiplies while the other looks for its minima.
    `asynchronous_mma`: the device multiplies from shared memory (Hopper on).
    """
    block_d = max(16, triton.next_power_of_2(head_dim))
    block_n, block_k = (128, 64) if itemsize == 2 else (64, 32)
    if itemsize == 4 and block_d > 64 and not asynchronous_mma:
        block_k = 16  # the parts of a float32 row stay in registers

    def needed(buffers: int) -> int:
        return block_d * (block_n * itemsize + 4 * block_k * buffers)

    num_stages = next((buffers for buffers in (3, 2) if needed(buffers) <= shared_memory // 2 - BARRIERS), 2)
    while block_k > SMALLEST_TILE and needed(num_stages) > shared_memory - BARRIERS:
        block_k //= 2
    return AssignConfig(block_n, block_k, block_d, 4 if itemsize == 4 and block_d <= 64 else 8, num_stages)


@jit
def _rows_of_head(p_x, batch_stride, head_stride, heads):
    """Where a program's head begins; the division is in 32 bits, since the machine has none in 64."""
    i_b, i_h = tl.program_id(1) // heads, tl.program_id(1) % heads
    return p_x + i_b.to(tl.int64) * batch_stride + i_h.to(tl.int64) * head_stride


@jit
def assign_kernel(
    p_x, p_high, p_low, p_norms, p_farthest, p_labels, x_strides, rows, clusters, heads, tolerance,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i_head = tl.program_id(1).to(tl.int64)
    moves = tl.load(p_farthest + i_head) > tolerance  # false for NaN
    if moves == 0:
        return
    i_row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_d = tl.arange(0, BLOCK_D)
    in_head = i_d < HEAD_DIM
    p_x = _rows_of_head(p_x, x_strides[0], x_strides[1], heads)
    p_rows = p_x + i_row.to(tl.int64)[:, None] * x_strides[2] + i_d[None, :]
    b_x = tl.load(p_rows, mask=(i_row < rows)[:, None] & in_head[None, :], other=0.0)

    i_first = i_head * clusters
    b_best = tl.full([BLOCK_N], float("inf"), tl.float32)
    b_label = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, clusters, BLOCK_K):
        i_centroid = start + tl.arange(0, BLOCK_K)
        exists = i_centroid < clusters
        i_entry = (i_first + i_centroid)[:, None] * HEAD_DIM + i_d[None, :]
        mask = exists[:, None] & in_head[None, :]
        b_product = tl.dot(b_x, tl.trans(tl.load(p_high + i_entry, mask=mask, other=0.0)), input_precision=PRECISION)
        if p_low is not None:
            b_low = tl.load(p_low + i_entry, mask=mask, other=0.0)
            b_product = tl.dot(b_x, tl.trans(b_low), b_product, input_precision=PRECISION)
        b_norm = tl.load(p_norms + i_first + i_centroid, mask=exists, other=float("inf"))
        b_distance = b_norm[None, :] - 2 * b_product  # all but the row's own norm, which changes no minimum
        b_least = tl.min(b_distance, 1)
        b_first = tl.min(tl.where(b_distance == b_least[:, None], i_centroid[None, :], clusters), 1)
        b_label = tl.where(b_least < b_best, b_first, b_label)
        b_best = tl.where(b_least < b_best, b_least, b_best)
    tl.store(p_labels + i_head * rows + i_row, b_label, mask=i_row < rows)


@jit
def _sum_rows(
    p_x, p_order, start, end, row_stride, first_row, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):
    """Sum of the rows that stand at positions start to end of the order, in float32."""
    i_d = tl.arange(0, BLOCK_D)
    b_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for position in range(start, end, ROWS):
        i_position = position + tl.arange(0, ROWS)
        inside = i_position < end
        i_row = tl.load(p_order + i_position, mask=inside, other=first_row) - first_row
        mask = inside[:, None] & (i_d < HEAD_DIM)[None, :]
        b_sum += tl.load(p_x + i_row[:, None] * row_stride + i_d[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.sum(b_sum, 0)


@jit
def sum_chunks_kernel(
    p_x, p_order, p_keys, p_farthest, p_chunks, x_strides, rows, heads, tolerance,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sums of the chunks that lie in one cluster; the clusters sum what is left of their own rows."""
    i_head, i_chunk = tl.program_id(1).to(tl.int64), tl.program_id(0)
    start = i_chunk * CHUNK
    p_keys += i_head * rows + start
    wanted = (tl.load(p_farthest + i_head) > tolerance) & (tl.load(p_keys) == tl.load(p_keys + CHUNK - 1))
    if wanted == 0:
        return
    p_x = _rows_of_head(p_x, x_strides[0], x_strides[1], heads)
    first = i_head * rows
    b_sum = _sum_rows(p_x, p_order + first, start, start + CHUNK, x_strides[2], first, HEAD_DIM, BLOCK_D, ROWS)
    i_d = tl.arange(0, BLOCK_D)
    p_chunks += (i_head * tl.num_programs(0) + i_chunk) * HEAD_DIM
    tl.store(p_chunks + i_d, b_sum, mask=i_d < HEAD_DIM)


@jit
def update_kernel(
    p_x, p_order, p_ends, p_farthest, p_chunks, p_centroids, p_high, p_low, p_norms, p_moves, x_strides, rows,
    clusters, heads, tolerance,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Mean of one cluster: rows up to the next chunk, whole chunks, the rows behind them."""
    i_head, i_cluster = tl.program_id(1).to(tl.int64), tl.program_id(0)
    moves = tl.load(p_farthest + i_head) > tolerance
    if moves == 0:
        return
    i_entry, first = i_head * clusters + i_cluster, i_head * rows
    start = (tl.load(p_ends + i_entry) - first).to(tl.int32)
    end = (tl.load(p_ends + i_entry + 1) - first).to(tl.int32)
    if start == end:
        tl.store(p_moves + i_entry, 0.0)
        return
    head_end = tl.minimum(end, (start + CHUNK - 1) // CHUNK * CHUNK)
    tail_start = tl.maximum(head_end, end // CHUNK * CHUNK)
    p_x = _rows_of_head(p_x, x_strides[0], x_strides[1], heads)
    p_order += first
    b_sum = _sum_rows(p_x, p_order, start, head_end, x_strides[2], first, HEAD_DIM, BLOCK_D, ROWS)
    b_sum += _sum_rows(p_x, p_order, tail_start, end, x_strides[2], first, HEAD_DIM, BLOCK_D, ROWS)

    i_d = tl.arange(0, BLOCK_D)
    in_head = i_d < HEAD_DIM
    p_chunks += i_head * (rows // CHUNK) * HEAD_DIM
    b_chunks = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for chunk in range(head_end // CHUNK, tail_start // CHUNK, ROWS):
        i_chunk = chunk + tl.arange(0, ROWS)
        mask = (i_chunk < tail_start // CHUNK)[:, None] & in_head[None, :]
        b_chunks += tl.load(p_chunks + i_chunk[:, None] * HEAD_DIM + i_d[None, :], mask=mask, other=0.0)
    b_mean = (b_sum + tl.sum(b_chunks, 0)) / (end - start).to(tl.float32)

    p_old = p_centroids + i_entry * HEAD_DIM + i_d
    b_move = b_mean - tl.load(p_old, mask=in_head, other=0.0)
    tl.store(p_moves + i_entry, tl.sqrt(tl.sum(tl.where(in_head, b_move * b_move, 0.0), 0)))
    tl.store(p_norms + i_entry, tl.sum(b_mean * b_mean, 0))
    tl.store(p_old, b_mean, mask=in_head)
    if p_low is not None:
        b_high = b_mean.to(p_high.dtype.element_ty)
        tl.store(p_high + i_entry * HEAD_DIM + i_d, b_high, mask=in_head)
        b_low = (b_mean - b_high.to(tl.float32)).to(p_low.dtype.element_ty)
        tl.store(p_low + i_entry * HEAD_DIM + i_d, b_low, mask=in_head)


def split_centroids(
    centroids: Float32[Tensor, "b h k d"], dtype: torch.dtype
) -> tuple[Float[Tensor, "b h k d"], Float[Tensor, "b h k d"] | None]:
    """Return the centroids as a sum of two tensors of a half precision: tensor cores take no mixed operands.

    One part alone would move the borders between clusters by its rounding; both hold 16 (bfloat16) or 22 bits.
    """
    if dtype == torch.float32:
        return centroids, None
    largest = torch.finfo(dtype).max
    high = centroids.clamp(-largest, largest).to(dtype)
    return high, (centroids - high.float()).clamp(-largest, largest).to(dtype)


def sort_rows(
    labels: Int32[Tensor, "b h n"], clusters: int
) -> tuple[Int64[Tensor, " bhn"], Int[Tensor, " bhn"], Int32[Tensor, " bhk1"]]:
    """Return rows of all heads in the order of their clusters, their clusters' numbers, and where each begins.

    One sort for all heads: their clusters are numbered on, in 16 bits where these suffice, which halves its time.
    """
    heads = labels.shape[0] * labels.shape[1]
    short = heads * clusters < 2**16
    dtype, low = (torch.int16, -(2**15)) if short else (torch.int32, 0)
    offset = torch.arange(heads, device=labels.device, dtype=torch.int32) * clusters + low
    keys, order = (labels.view(heads, -1) + offset[:, None]).to(dtype).flatten().sort(stable=True)
    numbers = torch.arange(low, low + heads * clusters + 1, device=labels.device, dtype=dtype)
    return order, keys, torch.searchsorted(keys, numbers, out_int32=True)


def launch_assign(x: Tensor, state: dict[str, Tensor | None], labels: Tensor, clusters: int, tolerance: float) -> None:
    """Write the label of every row of the heads that have not settled."""
    batch, heads, rows, head_dim = x.shape
    shared_memory, asynchronous_mma = device_limits(x)
    config = assign_config(head_dim, x.element_size(), shared_memory=shared_memory, asynchronous_mma=asynchronous_mma)
    assign_kernel[(triton.cdiv(rows, config.block_n), batch * heads)](
        x, state["high"], state["low"], state["norms"], state["farthest"], labels, x.stride()[:3], rows, clusters,
        heads, tolerance,
        HEAD_DIM=head_dim, BLOCK_D=config.block_d, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        PRECISION="ieee" if x.element_size() == 2 else "tf32x3", **config.options(),
    )  # fmt: skip


def launch_update(
    x: Tensor, state: dict[str, Tensor | None], rows_in_order: tuple[Tensor, Tensor, Tensor], tolerance: float
) -> None:
    """Move the centroids of the heads that have not settled, and note how far the farthest one went."""
    order, keys, ends = rows_in_order
    batch, heads, rows, head_dim = x.shape
    centroids, chunks, moves, farthest = (state[name] for name in ("centroids", "chunks", "moves", "farthest"))
    sizes = {"HEAD_DIM": head_dim, "BLOCK_D": max(16, triton.next_power_of_2(head_dim)), "CHUNK": CHUNK}
    sizes |= {"ROWS": SUM_ROWS, **compiler_options(num_warps=4)}
    strides = x.stride()[:3]
    if rows >= CHUNK:
        sum_chunks_kernel[(rows // CHUNK, batch * heads)](
            x, order, keys, farthest, chunks, strides, rows, heads, tolerance, **sizes
        )
    update_kernel[(centroids.shape[2], batch * heads)](
        x, order, ends, farthest, chunks, centroids, state["high"], state["low"], state["norms"], moves, strides,
        rows, centroids.shape[2], heads, tolerance, **sizes,
    )  # fmt: skip
    torch.amax(moves, -1, out=farthest)


def _start(x: Tensor, centroids: Tensor) -> dict[str, Tensor | None]:
    """Return what lives from one iteration to the next."""
    batch, heads, rows, head_dim = x.shape
    centroids = centroids.float().clone(memory_format=torch.contiguous_format)
    high, low = split_centroids(centroids, x.dtype)
    return {
        "centroids": centroids,
        "high": high,
        "low": low,
        "norms": centroids.square().sum(-1),
        "chunks": centroids.new_empty(batch * heads, max(1, rows // CHUNK), head_dim),
        "moves": centroids.new_empty(batch * heads, centroids.shape[2]),
        "farthest": centroids.new_full((batch * heads,), torch.inf),
    }


def _empty_labels(x: Tensor) -> Int32[Tensor, "b h n"]:
    return x.new_empty(x.shape[:3], dtype=torch.int32)


@torch.library.custom_op(
    "sparse_kernels::kmeans_triton",
    mutates_args=(),
    schema="(Tensor x, Tensor centroids, int iterations, float tolerance) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def kmeans_triton(
    x: Float[Tensor, "b h n d"], centroids: Float[Tensor, "b h k d"], iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The custom operator behind forward, with the fields of Clusters: one graph node under torch.compile."""
    x = _tensors.rows(x)
    batch, heads, rows, _ = x.shape
    clusters = centroids.shape[2]
    tolerance = min(tolerance, torch.finfo(torch.float32).max)  # the first iteration starts from a move of inf
    state, labels = _start(x, centroids), _empty_labels(x)
    with torch.cuda.device_of(x):
        for _ in range(max(iterations, 1)):
            launch_assign(x, state, labels, clusters, tolerance)
            rows_in_order = sort_rows(labels, clusters)
            if iterations:
                launch_update(x, state, rows_in_order, tolerance)
    order, _, ends = rows_in_order
    first = torch.arange(batch * heads, device=x.device)[:, None] * rows
    order = (order.view(batch * heads, rows) - first).view(batch, heads, rows)
    begin = ends[:-1].view(batch * heads, clusters)
    offsets = torch.cat([begin - first, torch.full_like(first, rows)], 1).int().view(batch, heads, clusters + 1)
    return labels, state["centroids"], offsets.diff(), order, offsets


@kmeans_triton.register_fake
def _fake_clusters(
    x: Tensor, centroids: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, clusters, _ = centroids.shape
    labels = _empty_labels(x)
    sizes, offsets = (labels.new_empty(batch, heads, count) for count in (clusters, clusters + 1))
    moved = torch.empty_like(centroids, dtype=torch.float32, memory_format=torch.contiguous_format)
    return labels, moved, sizes, torch.empty_like(labels, dtype=torch.int64), offsets
