"""Searches in clouds of points as Triton kernels: one program a cloud, or a tile of queries of one cloud.

Names: p_ pointers, b_ block values, i_ indices, capitals are compile-time constants. Nothing waits for the device.
Products and sums are not fused, so that distances have the bits of the other backends.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sparse_kernels._triton import compiler_options, jit, reason_against, tl, triton
from sparse_kernels.points.neighbors import Neighbors
from sparse_kernels.tiles import cut_blocks

SAMPLE_POINTS = 2048  # of a cloud, looked at by its program at once
QUERIES, POINTS = 16, 128  # of one tile
MOST_KEPT = 64  # neighbours that a program keeps; for more it looks again, behind the last one found
# A key is the bits of the squared distance, which rise with it, above the row: the smaller key comes first.
MISSING = 2**63 - 1
MISSING_INSIDE = MISSING if tl is None else tl.constexpr(MISSING)  # the form in which kernels read it
OPTIONS = compiler_options(num_warps=4) | {"enable_fp_fusion": False}
SAMPLE_OPTIONS = compiler_options(num_warps=16) | {"enable_fp_fusion": False}


def can_run(points: Tensor) -> str | None:
    """Return why the Triton kernels cannot take these points, or None."""
    return reason_against(sample_kernel, {"points": points})


def farthest_point_sampling(
    points: Float32[Tensor, "n d"], offsets: Int64[Tensor, " b1"], starts: Int64[Tensor, " b"], count: int
) -> Int64[Tensor, "b count"]:
    """Return the picks of every cloud, a cloud a program."""
    return sample_triton(points, offsets, starts, count)


def k_nearest_neighbors(
    points: Float32[Tensor, "n d"],
    offsets: Int64[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int64[Tensor, " b1"],
    k: int,
) -> Neighbors:
    """Return the nearest points of every query."""
    return Neighbors(*nearest_triton(points, offsets, queries, query_offsets, k))


def ball_query(
    points: Float32[Tensor, "n d"],
    offsets: Int64[Tensor, " b1"],
    queries: Float32[Tensor, "m d"],
    query_offsets: Int64[Tensor, " b1"],
    squared_radius: float,
    k: int,
) -> Neighbors:
    """Return the first points in the ball around every query."""
    return Neighbors(*ball_triton(points, offsets, queries, query_offsets, squared_radius, k))


@jit
def sample_kernel(
    p_points, p_offsets, p_starts, p_nearest, p_picks, count, AXES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i_cloud = tl.program_id(0).to(tl.int64)
    first = tl.load(p_offsets + i_cloud)
    size = (tl.load(p_offsets + i_cloud + 1) - first).to(tl.int32)
    # Numbers are not looked at before: a wrong start, or NaN among the distances, must not lead out of the cloud.
    i_pick = tl.minimum(tl.maximum(tl.load(p_starts + i_cloud).to(tl.int32), 0), size - 1)
    p_points += first * AXES
    p_nearest += first
    i_lane = tl.arange(0, BLOCK)
    for sample in range(0, tl.minimum(count, size)):
        tl.store(p_picks + i_cloud * count + sample, first + i_pick)
        b_best = tl.full([BLOCK], -1.0, tl.float32)
        b_row = tl.zeros([BLOCK], tl.int32)
        for start in range(0, size, BLOCK):
            i_row = start + i_lane
            inside = i_row < size
            b_distance = tl.zeros([BLOCK], tl.float32)
            for axis in tl.static_range(AXES):
                b_away = tl.load(p_points + i_row.to(tl.int64) * AXES + axis, mask=inside, other=0.0)
                b_away -= tl.load(p_points + i_pick.to(tl.int64) * AXES + axis)
                b_distance += b_away * b_away  # the first is added to 0, which changes no bit
            b_nearest = tl.minimum(tl.load(p_nearest + i_row, mask=inside, other=-1.0), b_distance)
            b_nearest = tl.where(i_row == i_pick, -1.0, b_nearest)  # nearer than any other: picked once
            tl.store(p_nearest + i_row, b_nearest, mask=inside)
            b_row = tl.where(b_nearest > b_best, i_row, b_row)  # rows rise: the first of equals stays
            b_best = tl.maximum(b_best, b_nearest)
        farthest = tl.max(b_best, 0)
        i_pick = tl.minimum(tl.min(tl.where(b_best == farthest, b_row, size), 0), size - 1)
        tl.debug_barrier()  # what one thread has written another may read


@jit
def _squared_distances(p_points, i_row, inside, p_queries, i_query, valid, AXES: tl.constexpr):
    """Squared distances of queries (rows) to points (columns)."""
    b_distance = tl.zeros([i_query.shape[0], i_row.shape[0]], tl.float32)
    for axis in tl.static_range(AXES):
        b_points = tl.load(p_points + i_row * AXES + axis, mask=inside, other=0.0)
        b_queries = tl.load(p_queries + i_query * AXES + axis, mask=valid, other=0.0)
        b_away = b_points[None, :] - b_queries[:, None]
        b_distance += b_away * b_away
    return b_distance


@jit
def nearest_kernel(
    p_points, p_offsets, p_queries, p_cloud, p_begin, p_end, p_after, p_keys, wanted,
    AXES: tl.constexpr, KEPT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The `wanted` smallest keys above `after` of each query, in any order; just below MISSING where there are none."""
    i_tile = tl.program_id(0)
    begin, end = tl.load(p_begin + i_tile), tl.load(p_end + i_tile)
    if begin >= end:
        return
    i_cloud = tl.load(p_cloud + i_tile)
    first, last = tl.load(p_offsets + i_cloud), tl.load(p_offsets + i_cloud + 1)
    i_query = begin + tl.arange(0, BLOCK_M)
    valid = i_query < end
    b_after = tl.load(p_after + i_query, mask=valid, other=MISSING_INSIDE)
    i_slot = tl.arange(0, KEPT).to(tl.int64)
    b_empty = tl.where(i_slot < wanted, MISSING_INSIDE - 1 - i_slot, -1)  # differ, so that one at a time is replaced
    b_kept = tl.zeros([BLOCK_M, KEPT], tl.int64) + b_empty[None, :]
    b_worst = tl.max(b_kept, 1)
    for start in range(first, last, BLOCK_N):
        i_row = start + tl.arange(0, BLOCK_N)
        inside = i_row < last
        b_distance = _squared_distances(p_points, i_row, inside, p_queries, i_query, valid, AXES)
        b_keys = (b_distance.to(tl.int32, bitcast=True).to(tl.int64) << 32) | i_row[None, :]
        b_keys = tl.where(inside[None, :] & (b_keys > b_after[:, None]), b_keys, MISSING_INSIDE)
        b_best = tl.min(b_keys, 1)
        while tl.max((b_best < b_worst).to(tl.int32), 0) > 0:
            replaced = (b_kept == b_worst[:, None]) & (b_best < b_worst)[:, None]
            b_kept = tl.where(replaced, b_best[:, None], b_kept)
            b_worst = tl.max(b_kept, 1)
            b_keys = tl.where(b_keys == b_best[:, None], MISSING_INSIDE, b_keys)
            b_best = tl.min(b_keys, 1)
    p_out = p_keys + i_query[:, None] * wanted + i_slot[None, :]
    tl.store(p_out, b_kept, mask=valid[:, None] & (i_slot < wanted)[None, :])


@jit
def ball_kernel(
    p_points, p_offsets, p_queries, p_cloud, p_begin, p_end, p_index, p_distances, squared_radius, wanted,
    AXES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The first `wanted` points, by row, in the ball around each query; what there is no point for stays as it is."""
    i_tile = tl.program_id(0)
    begin, end = tl.load(p_begin + i_tile), tl.load(p_end + i_tile)
    if begin >= end:
        return
    i_cloud = tl.load(p_cloud + i_tile)
    start, last = tl.load(p_offsets + i_cloud), tl.load(p_offsets + i_cloud + 1)
    i_query = begin + tl.arange(0, BLOCK_M)
    valid = i_query < end
    b_found = tl.where(valid, 0, wanted)
    while (start < last) & (tl.min(b_found, 0) < wanted):
        i_row = start + tl.arange(0, BLOCK_N)
        inside = i_row < last
        b_distance = _squared_distances(p_points, i_row, inside, p_queries, i_query, valid, AXES)
        hit = inside[None, :] & valid[:, None] & (b_distance < squared_radius)
        b_place = b_found[:, None] + tl.cumsum(hit.to(tl.int32), 1) - 1
        i_out = i_query[:, None] * wanted + b_place
        tl.store(p_index + i_out, i_row[None, :] + tl.zeros_like(i_out), mask=hit & (b_place < wanted))
        tl.store(p_distances + i_out, b_distance, mask=hit & (b_place < wanted))
        b_found += tl.sum(hit.to(tl.int32), 1)
        start += BLOCK_N


def _tiles(query_offsets: Int64[Tensor, " b1"], queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each tile's cloud, its first query and where the cloud's end; a surplus tile begins behind that end."""
    tiles = cut_blocks(query_offsets.view(1, 1, -1), len(queries), QUERIES)
    return tiles.block.flatten(), tiles.first.flatten(), tiles.block_end.flatten()


@torch.library.custom_op(
    "sparse_kernels::farthest_point_sampling_triton",
    mutates_args=(),
    schema="(Tensor points, Tensor offsets, Tensor starts, int count) -> Tensor",
)
def sample_triton(points: Tensor, offsets: Tensor, starts: Tensor, count: int) -> Tensor:
    """The custom operator behind farthest_point_sampling: one graph node under torch.compile."""
    points = points.contiguous()
    picks = offsets.new_full((len(starts), count), -1)
    nearest = points.new_full((len(points),), torch.inf)
    sizes = {"AXES": points.shape[1], "BLOCK": SAMPLE_POINTS}
    with torch.cuda.device_of(points):
        sample_kernel[(len(starts),)](points, offsets, starts, nearest, picks, count, **sizes, **SAMPLE_OPTIONS)
    return picks


@torch.library.custom_op(
    "sparse_kernels::k_nearest_neighbors_triton",
    mutates_args=(),
    schema="(Tensor points, Tensor offsets, Tensor queries, Tensor query_offsets, int count) -> (Tensor, Tensor)",
)
def nearest_triton(
    points: Tensor, offsets: Tensor, queries: Tensor, query_offsets: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The custom operator behind k_nearest_neighbors."""
    points, queries = points.contiguous(), queries.contiguous()
    tiles, found = _tiles(query_offsets, queries), []
    after = offsets.new_full((len(queries),), -1)
    for wanted in [MOST_KEPT] * (count // MOST_KEPT) + [count % MOST_KEPT] * (count % MOST_KEPT > 0):
        keys = offsets.new_empty(len(queries), wanted)
        sizes = {"AXES": points.shape[1], "BLOCK_M": QUERIES, "BLOCK_N": POINTS}
        sizes["KEPT"] = max(2, triton.next_power_of_2(wanted))
        with torch.cuda.device_of(points):
            nearest_kernel[(len(tiles[0]),)](points, offsets, queries, *tiles, after, keys, wanted, **sizes, **OPTIONS)
        found.append(keys.sort(1).values)
        after = found[-1][:, -1].contiguous()
    keys = torch.cat(found, 1)
    missing = keys >= MISSING - 1 - MOST_KEPT
    distance = (keys >> 32).int().view(torch.float32).masked_fill(missing, torch.inf)
    return (keys & (2**32 - 1)).masked_fill(missing, -1), distance


@torch.library.custom_op(
    "sparse_kernels::ball_query_triton",
    mutates_args=(),
    schema="(Tensor points, Tensor offsets, Tensor queries, Tensor query_offsets, float squared_radius, int count) -> "
    "(Tensor, Tensor)",
)
def ball_triton(
    points: Tensor, offsets: Tensor, queries: Tensor, query_offsets: Tensor, squared_radius: float, count: int
) -> tuple[Tensor, Tensor]:
    """The custom operator behind ball_query."""
    points, queries = points.contiguous(), queries.contiguous()
    tiles = _tiles(query_offsets, queries)
    index = offsets.new_full((len(queries), count), -1)
    distances = points.new_full((len(queries), count), torch.inf)
    sizes = {"AXES": points.shape[1], "BLOCK_M": QUERIES, "BLOCK_N": POINTS}
    with torch.cuda.device_of(points):
        ball_kernel[(len(tiles[0]),)](
            points, offsets, queries, *tiles, index, distances, squared_radius, count, **sizes, **OPTIONS
        )
    return index, distances


@sample_triton.register_fake
def _fake_picks(points: Tensor, offsets: Tensor, starts: Tensor, count: int) -> Tensor:
    return offsets.new_empty(starts.shape[0], count)


@nearest_triton.register_fake
def _fake_nearest(
    points: Tensor, offsets: Tensor, queries: Tensor, query_offsets: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    return offsets.new_empty(queries.shape[0], count), points.new_empty(queries.shape[0], count)


@ball_triton.register_fake
def _fake_ball(
    points: Tensor, offsets: Tensor, queries: Tensor, query_offsets: Tensor, squared_radius: float, count: int
) -> tuple[Tensor, Tensor]:
    return offsets.new_empty(queries.shape[0], count), points.new_empty(queries.shape[0], count)
