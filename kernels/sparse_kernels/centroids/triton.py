"""The error of centroids as one Triton kernel: a cluster of keys and a tile of queries a program.

Names: p_ pointers, b_ block values, i_ indices, capitals are compile-time constants.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_kernels._tensors import rows
from sparse_kernels._triton import LOG2E_INSIDE, compiler_options, grid_reason, jit, reason_against, tl, triton
from sparse_kernels.centroids.reference import LARGEST_EXPONENT
from sparse_kernels.centroids.reference import merge_centroids as merge_centroids
from sparse_kernels.kmeans import Clusters

# (queries, keys) of a tile, by whether products are rounded: k-means makes clusters of some 64 keys, and the three
# parts of a product that is as exact as float32 stay in registers.
TILES = {True: (64, 32), False: (32, 16)}
# What the powers behind the fifth add to exp(x) - 1 up to here is less than it is rounded by.
SERIES = 0.05 if tl is None else tl.constexpr(0.05)
HELD = LARGEST_EXPONENT if tl is None else tl.constexpr(LARGEST_EXPONENT)


def can_run(x: Tensor) -> str | None:
    """Return why the Triton kernel cannot take these tokens, or None."""
    reason = grid_reason(heads_in_all=x.shape[0] * x.shape[1])
    return reason or reason_against(log_error_kernel, {"tokens": x})


def centroid_log_error(
    queries: Float[Tensor, "b h nq d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    keys: Clusters,
    values: Float[Tensor, "b h nk d"],
    scale: float,
    precision: str = "float32",
) -> Float[Tensor, "b h nq nk"]:
    """Return the logarithms of the errors; keys in half precision are multiplied in it, if `precision` allows."""
    rounded = precision == "bfloat16" and k.element_size() == 2
    return log_error_triton(queries, k, v, keys.order, keys.offsets, keys.centroids, values, scale, rounded)


@jit
def _growth(b_exponent, b_held, b_one):
    """exp(x - held) - exp(-held), as exact as float32 also where it is next to nothing."""
    x = b_exponent
    b_series = x * (1 + x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120)))))
    b_plain = tl.exp2((x - b_held) * LOG2E_INSIDE) - b_one
    return tl.where((tl.abs(x) < SERIES) & (b_held == 0), b_series, b_plain)


@jit
def log_error_kernel(
    p_queries, p_k, p_v, p_order, p_offsets, p_centroids, p_values, p_error, k_strides, v_strides,
    query_clusters, key_clusters, tokens, heads, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr,
    ROUNDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_head, i_cluster = tl.program_id(2).to(tl.int64), tl.program_id(0)
    i_d = tl.arange(0, BLOCK_D)
    in_head = i_d < HEAD_DIM
    i_query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    p_query = p_queries + (i_head * query_clusters + i_query)[:, None] * HEAD_DIM + i_d[None, :]
    b_q = tl.load(p_query, mask=(i_query < query_clusters)[:, None] & in_head[None, :], other=0.0) * scale
    i_center = (i_head * key_clusters + i_cluster) * HEAD_DIM + i_d
    b_center = tl.load(p_centroids + i_center, mask=in_head, other=0.0)
    b_value = tl.load(p_values + i_center, mask=in_head, other=0.0)
    i_b, i_h = (i_head // heads).to(tl.int64), (i_head % heads).to(tl.int64)
    p_k += i_b * k_strides[0] + i_h * k_strides[1]
    p_v += i_b * v_strides[0] + i_h * v_strides[1]
    p_border = p_offsets + i_head * (key_clusters + 1) + i_cluster
    if ROUNDED:
        b_q = b_q.to(p_k.dtype.element_ty)

    # A factor exp(-held) keeps weights of large exponents finite; it is 1 as long as none is above HELD.
    b_held = tl.zeros([BLOCK_Q], tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(tl.load(p_border), tl.load(p_border + 1), BLOCK_T):
        i_position = start + tl.arange(0, BLOCK_T)
        inside = i_position < tl.load(p_border + 1)
        i_row = tl.load(p_order + i_head * tokens + i_position, mask=inside, other=0)
        mask = inside[:, None] & in_head[None, :]
        b_k = tl.load(p_k + i_row[:, None] * k_strides[2] + i_d[None, :], mask=mask, other=0.0).to(tl.float32)
        b_v = tl.load(p_v + i_row[:, None] * v_strides[2] + i_d[None, :], mask=mask, other=0.0).to(tl.float32)
        b_rest = tl.where(mask, b_k - b_center[None, :], 0.0)
        b_gap = tl.where(mask, b_v - b_value[None, :], 0.0)
        if ROUNDED:
            b_rest = b_rest.to(p_k.dtype.element_ty)
        b_exponent = tl.dot(b_q, tl.trans(b_rest), input_precision=PRECISION)
        b_next = tl.maximum(b_held, tl.max(b_exponent, 1) - HELD)
        b_one = tl.exp2(-b_next * LOG2E_INSIDE)[:, None]
        b_growth = _growth(b_exponent, b_next[:, None], b_one)
        b_error = tl.sum(b_v * b_v, 1)[None, :] * b_growth + (2 * tl.sum(b_v * b_gap, 1))[None, :] * b_one
        b_error = b_error * b_growth + tl.sum(b_gap * b_gap, 1)[None, :] * (b_one * b_one)
        b_sum = b_sum * tl.exp2(2 * (b_held - b_next) * LOG2E_INSIDE) + tl.sum(b_error, 1)
        b_held = b_next
    nothing = b_sum <= 0  # NaN is not nothing
    b_log = tl.log2(tl.where(nothing, 1.0, b_sum)) / LOG2E_INSIDE + 2 * b_held
    b_log = tl.where(nothing, float("-inf"), b_log)
    p_out = p_error + (i_head * query_clusters + i_query) * key_clusters + i_cluster
    tl.store(p_out, b_log, mask=i_query < query_clusters)


@torch.library.custom_op(
    "sparse_kernels::centroid_log_error_triton",
    mutates_args=(),
    schema="(Tensor queries, Tensor k, Tensor v, Tensor order, Tensor offsets, Tensor centroids, Tensor values, "
    "float scale, bool rounded) -> Tensor",
)
def log_error_triton(
    queries: Float[Tensor, "b h nq d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"], order: Tensor,
    offsets: Tensor, centroids: Float[Tensor, "b h nk d"], values: Float[Tensor, "b h nk d"], scale: float,
    rounded: bool,
) -> Tensor:  # fmt: skip
    """The custom operator behind centroid_log_error: one graph node under torch.compile."""
    k, v = rows(k), rows(v)
    batch, heads, tokens, head_dim = k.shape
    clusters = queries.shape[2], centroids.shape[2]
    error = queries.new_empty(batch, heads, *clusters)
    fixed = [x.contiguous() for x in (order, offsets, centroids, values)]
    block_q, block_t = TILES[rounded]
    with torch.cuda.device_of(k):
        log_error_kernel[(clusters[1], triton.cdiv(clusters[0], block_q), batch * heads)](
            queries.contiguous(), k, v, *fixed, error, k.stride()[:3], v.stride()[:3], *clusters, tokens, heads, scale,
            HEAD_DIM=head_dim, BLOCK_D=max(16, triton.next_power_of_2(head_dim)), BLOCK_Q=block_q, BLOCK_T=block_t,
            ROUNDED=rounded, PRECISION="ieee" if rounded else "tf32x3", **compiler_options(num_warps=4),
        )  # fmt: skip
    return error


@log_error_triton.register_fake
def _fake_error(
    queries: Tensor, k: Tensor, v: Tensor, order: Tensor, offsets: Tensor, centroids: Tensor, *_: object
) -> Tensor:
    return queries.new_empty(*queries.shape[:3], centroids.shape[2])
