"""Searches against brute force over single numbers, and every backend and instruction set against the same bits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels.points import Neighbors, ball_query, cpu, farthest_point_sampling, k_nearest_neighbors, reference
from tests.sparse_kernels.points.clouds import Clouds, draw, packed, radius_of
from tests.sparse_kernels.processors import available

INSTRUCTIONS = ["portable", "avx2", "avx512"]
SEEDS = range(90)
COUNTS = (1, 3, 16, 500)
built = pytest.mark.skipif(_extension.load() is not None, reason="the C++ kernel is not built")


def searches(clouds: Clouds, count: int) -> dict[str, Callable[..., Neighbors]]:
    """Return both searches with their arguments, for a backend."""
    given = clouds.points, clouds.offsets, clouds.queries, clouds.query_offsets
    radius = radius_of(clouds)
    return {
        "nearest": lambda backend: k_nearest_neighbors(*given, count, backend=backend),
        "ball": lambda backend: ball_query(*given, radius, count, backend=backend),
    }


def distance(point: np.ndarray, other: np.ndarray) -> np.float32:
    """Return the squared distance, one rounded operation after the other."""
    total = None
    with np.errstate(over="ignore", under="ignore"):
        for a, b in zip(point, other, strict=True):
            square = np.float32(np.float32(a - b) * np.float32(a - b))
            total = square if total is None else np.float32(total + square)
    return total


def brute_force(clouds: Clouds, count: int, radius: float | None) -> list[list[tuple[int, np.float32]]]:
    """Return (row, squared distance) of the neighbours of every query: the nearest, or the first in a ball."""
    found, points, queries = [], clouds.points.numpy(), clouds.queries.numpy()
    limit = None if radius is None else np.float32(np.float32(radius) * np.float32(radius))
    for (first, end), (begin, behind) in zip(
        pairwise(clouds.offsets.tolist()), pairwise(clouds.query_offsets.tolist()), strict=True
    ):
        for query in queries[begin:behind]:
            pairs = [(row, distance(points[row], query)) for row in range(first, end)]
            near = sorted(pairs, key=lambda pair: pair[::-1]) if limit is None else [p for p in pairs if p[1] < limit]
            found.append(near[:count])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_reference_equals_brute_force(seed: int) -> None:
    clouds = draw(seed + 6, largest=40)
    for name, search in searches(clouds, 7).items():
        found = search("reference")
        expected = brute_force(clouds, 7, radius_of(clouds) if name == "ball" else None)
        for index, squared, pairs in zip(found.index.tolist(), found.squared_distance, expected, strict=True):
            assert index == [row for row, _ in pairs] + [-1] * (7 - len(pairs))
            assert squared.numpy().tolist() == [d for _, d in pairs] + [float("inf")] * (7 - len(pairs))
        assert found.counts.tolist() == [len(pairs) for pairs in expected]


@pytest.mark.parametrize("seed", range(6))
def test_the_reference_picks_the_farthest(seed: int) -> None:
    clouds = draw(seed + 6, largest=30)
    picks = farthest_point_sampling(clouds.points, clouds.offsets, 12, backend="reference")
    points = clouds.points.numpy()
    for (first, end), row in zip(pairwise(clouds.offsets.tolist()), picks.tolist(), strict=True):
        left, expected = list(range(first, end)), []
        while left and len(expected) < 12:
            nearest = [min((distance(points[r], points[p]) for p in expected), default=np.float32(0)) for r in left]
            expected.append(left.pop(int(np.argmax(nearest))))  # the first of equals
        assert row == expected + [-1] * (12 - len(expected))


@built
def test_cpu_and_reference_are_equal_bit_for_bit() -> None:
    for seed in SEEDS:
        clouds, count = draw(seed), COUNTS[seed % len(COUNTS)]
        for name, search in searches(clouds, count).items():
            ours, expected = search("cpu"), search("reference")
            assert torch.equal(ours.index, expected.index), (seed, name)
            assert torch.equal(ours.squared_distance, expected.squared_distance), (seed, name)
        sizes = clouds.offsets.diff()
        starts = torch.randint(0, 10**6, sizes.shape) % sizes.clamp(min=1)
        ours, expected = (
            farthest_point_sampling(clouds.points, clouds.offsets, count, starts=starts, backend=backend)
            for backend in ("cpu", "reference")
        )
        assert torch.equal(ours, expected), seed


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_instruction_set_finds_the_same(instructions: str) -> None:
    for seed in range(36):
        clouds, count = draw(seed), COUNTS[seed % len(COUNTS)]
        given = clouds.points, clouds.offsets, clouds.queries, clouds.query_offsets
        starts = torch.zeros(len(clouds.offsets) - 1, dtype=torch.int64)
        with available(instructions):
            picks = cpu.farthest_point_sampling(*given[:2], starts, count, instructions)
            near = cpu.k_nearest_neighbors(*given, count, instructions)
            ball = cpu.ball_query(*given, 0.5, count, instructions)
        assert torch.equal(picks, reference.farthest_point_sampling(*given[:2], starts, count))
        for ours, expected in (
            (near, reference.k_nearest_neighbors(*given, count)),
            (ball, reference.ball_query(*given, 0.5, count)),
        ):
            assert all(map(torch.equal, ours, expected))


@built
def test_many_points_and_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(3000, 3, generator=generator) * 0.01
    offsets = torch.tensor([0, 2500, 2500, 5999, 6000])
    points = torch.cat([near, torch.randn(3000, 3, generator=generator)])[torch.randperm(6000, generator=generator)]
    expected, before = None, torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = k_nearest_neighbors(points, offsets, points, offsets, 20, backend="cpu")
            picks = farthest_point_sampling(points, offsets, 700, backend="cpu")
            expected = expected or (
                k_nearest_neighbors(points, offsets, points, offsets, 20, backend="reference"),
                farthest_point_sampling(points, offsets, 700, backend="reference"),
            )
            assert torch.equal(found.index, expected[0].index) and torch.equal(picks, expected[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.index[:, 0], torch.arange(6000))  # no two points are in one place
    assert torch.equal(found.counts, torch.full((6000,), 20).index_fill(0, torch.tensor([5999]), 1))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equal_points_are_told_apart_by_their_rows(backend: str) -> None:
    points, offsets = torch.ones(70, 2), packed(torch.tensor([70, 0]))
    picks = farthest_point_sampling(points, offsets, 80, starts=torch.tensor([40, 0]), backend=backend)
    assert picks[0].tolist() == [40, *range(40), *range(41, 70), *[-1] * 10] and picks[1].eq(-1).all()
    found = k_nearest_neighbors(points, offsets, points[:1], packed(torch.tensor([1, 0])), 50, backend=backend)
    assert found.index[0].tolist() == list(range(50)) and found.squared_distance.eq(0).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_ball_ends_before_its_radius(backend: str) -> None:
    points, offsets = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 3], dtype=torch.int32)
    found = ball_query(points, offsets, torch.zeros(1, 2), torch.tensor([0, 1]), 1.0, 3, backend=backend)
    assert found.index.tolist() == [[2, -1, -1]] and found.counts.tolist() == [1]
    wider = ball_query(points, offsets, torch.zeros(1, 2), torch.tensor([0, 1]), 2.5, 2, backend=backend)
    assert wider.index.tolist() == [[0, 1]] and wider.squared_distance.tolist() == [[4.0, 1.0]]


def test_strides_and_offsets_of_both_types_change_nothing() -> None:
    clouds = draw(8)
    given = clouds.points, clouds.offsets, clouds.queries, clouds.query_offsets
    turned = clouds.points.T.contiguous().T, clouds.offsets.int(), clouds.queries.T.contiguous().T
    assert torch.equal(
        k_nearest_neighbors(*given, 4).index, k_nearest_neighbors(*turned, clouds.query_offsets.int(), 4).index
    )


@built
def test_opcheck() -> None:
    clouds, operators = draw(8), torch.ops.sparse_kernels
    starts = torch.zeros(len(clouds.offsets) - 1, dtype=torch.int64)
    given = clouds.points, clouds.offsets, clouds.queries, clouds.query_offsets
    torch.library.opcheck(operators.farthest_point_sampling_cpu.default, (*given[:2], starts, 5, ""))
    torch.library.opcheck(operators.k_nearest_neighbors_cpu.default, (*given, 5, ""))
    torch.library.opcheck(operators.ball_query_cpu.default, (*given, 0.25, 5, ""))


@built
def test_a_graph_serves_any_number_of_clouds() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    operator = torch.ops.sparse_kernels.farthest_point_sampling_cpu
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: operator(*given, 2, ""), fullgraph=True, dynamic=True, backend=keep)
    for clouds in (3, 4, 5):  # sizes that are equal in the first call would be taken for one
        points, offsets = torch.randn(6 * clouds, 2), packed(torch.full((clouds,), 6))
        given = points, offsets, torch.zeros(clouds, dtype=torch.int64)
        assert torch.equal(compiled(*given), operator(*given, 2, ""))
    assert len(graphs) == 1


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=built)])
def test_the_default_device_of_the_user_may_be_another(backend: str) -> None:
    points, offsets, query_offsets = torch.randn(60, 3), torch.tensor([0, 60]), torch.tensor([0, 9])
    expected = ball_query(points, offsets, points[:9], query_offsets, 0.7, 4, backend=backend)
    with torch.device("meta"):
        found = ball_query(points, offsets, points[:9], query_offsets, 0.7, 4, backend=backend)
    assert all(map(torch.equal, found, expected)) and (expected.counts >= 1).all()


BAD_OFFSETS = [0, 2, 4], [1, 2, 5], [0, 9, 5], [0, -2, 5], [0, 4, 2, 5], [0, 2, 5, 7], [5], []


@built
@pytest.mark.parametrize("wrong", [torch.tensor(ends, dtype=torch.int64) for ends in BAD_OFFSETS], ids=str)
def test_operators_refuse_offsets_that_a_graph_does_not_look_at(wrong: Tensor) -> None:
    operators, starts = torch.ops.sparse_kernels, torch.zeros(max(len(wrong) - 1, 0), dtype=torch.int64)
    for run in (
        lambda: operators.farthest_point_sampling_cpu(POINTS, wrong, starts, 2, ""),
        lambda: operators.k_nearest_neighbors_cpu(POINTS, wrong, POINTS, OFFSETS, 2, ""),
        lambda: operators.ball_query_cpu(POINTS, wrong, POINTS, OFFSETS, 1.0, 2, ""),
    ):
        with pytest.raises(ValueError, match="^the offsets of points must rise from 0 to its 5 rows$"):
            run()
    for run in (
        lambda: operators.k_nearest_neighbors_cpu(POINTS, OFFSETS, POINTS, wrong, 2, ""),
        lambda: operators.ball_query_cpu(POINTS, OFFSETS, POINTS, wrong, 1.0, 2, ""),
    ):
        with pytest.raises(ValueError, match="^the offsets of queries must rise from 0 to its 5 rows$"):
            run()


@built
def test_operators_refuse_other_numbers_that_a_graph_does_not_look_at() -> None:
    operators, starts = torch.ops.sparse_kernels, torch.zeros(2, dtype=torch.int64)
    for wrong, message in (
        ([2, 0], "starts must be places in their clouds, .* that of cloud 0 with 2 points is 2$"),
        ([0, -1], "that of cloud 1 with 3 points is -1$"),
        ([0], "starts must be one place for each of the 2 clouds, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            operators.farthest_point_sampling_cpu(POINTS, OFFSETS, torch.tensor(wrong), 2, "")
    with pytest.raises(ValueError, match="queries must have the points' clouds, got 1 for 2"):
        operators.k_nearest_neighbors_cpu(POINTS, OFFSETS, POINTS, OFFSETS[[0, 2]], 2, "")
    for points in (nan_at(3), nan_at(0).abs().neg(), POINTS + torch.inf):
        with pytest.raises(ValueError, match="points must be finite"):
            operators.farthest_point_sampling_cpu(points, OFFSETS, starts, 2, "")
        with pytest.raises(ValueError, match="queries must be finite"):
            operators.ball_query_cpu(POINTS, OFFSETS, points, OFFSETS, 1.0, 2, "")


def nan_at(row: int) -> Tensor:
    points = torch.zeros(5, 3)
    points[row, 1] = torch.nan
    return points


POINTS, OFFSETS = torch.zeros(5, 3), torch.tensor([0, 2, 5])
BAD_CLOUDS = {
    "no tensor": ([[0.0, 0.0]], OFFSETS, "points must be one of float32, got list"),
    "type": (POINTS.double(), OFFSETS, "points must be one of float32, got torch.float64: convert"),
    "axes": (torch.zeros(5, 5), OFFSETS, r"points must be .rows, 2 to 4 coordinates. .* got torch.float32 .5, 5."),
    "flat": (torch.zeros(5), OFFSETS, "points must be .rows, 2 to 4 coordinates"),
    "offsets of floats": (POINTS, OFFSETS.float(), "the offsets of points must be int32 or int64 .* torch.float32"),
    "one offset": (POINTS, OFFSETS[:1], "must name at least one cloud by its begin and end, got 1"),
    "falling": (POINTS, torch.tensor([0, 4, 2, 5]), r"must rise from 0 to its 5 rows, got \[0, 4, 2, 5\]"),
    "short": (POINTS, torch.tensor([0, 4]), r"must rise from 0 to its 5 rows, got \[0, 4\]"),
    "many": (POINTS, torch.arange(20), r"got \[0, 1, 2, 3, ..., 16, 17, 18, 19\]"),
    "NaN": (nan_at(3), OFFSETS, r"points must be finite, row 3 is \[0.0, nan, 0.0\]: leave such rows out"),
    "infinity": (POINTS + torch.inf, OFFSETS, "points must be finite, row 0"),
    "devices": (POINTS, OFFSETS.to("meta"), "the offsets of points is on meta, points on cpu"),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", BAD_CLOUDS)
def test_what_are_no_clouds_is_named(name: str) -> None:
    points, offsets, message = BAD_CLOUDS[name]
    for run in (
        lambda: farthest_point_sampling(points, offsets, 2),
        lambda: k_nearest_neighbors(points, offsets, POINTS, OFFSETS, 2),
        lambda: ball_query(points, offsets, POINTS, OFFSETS, 1.0, 2),
    ):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.usefixtures("unchecked_shapes")
def test_other_bad_input_is_named() -> None:
    good = POINTS, OFFSETS
    for run, message in (
        (lambda: farthest_point_sampling(*good, 0), "count must be from 1 to 16777216, got 0"),
        (lambda: farthest_point_sampling(*good, 1, starts=torch.tensor([0])), "starts must be .* one place for each"),
        (lambda: farthest_point_sampling(*good, 1, starts=torch.tensor([2, 0])), "that of cloud 0 with 2 points is 2"),
        (
            lambda: farthest_point_sampling(*good, 1, starts=torch.tensor([0, -1])),
            "that of cloud 1 with 3 points is -1",
        ),
        (lambda: k_nearest_neighbors(*good, *good, 0), "k must be from 1 to 16777216, got 0"),
        (lambda: k_nearest_neighbors(*good, *good, 2**40), "k must be from 1 to 16777216, got 1099511627776"),
        (
            lambda: k_nearest_neighbors(*good, POINTS[:, :2], OFFSETS, 2),
            "got 2 coordinates and 2 clouds for points with 3",
        ),
        (
            lambda: k_nearest_neighbors(*good, POINTS, OFFSETS[[0, 2]], 2),
            "3 coordinates and 1 clouds for points with 3",
        ),
        (lambda: k_nearest_neighbors(*good, nan_at(1), OFFSETS, 2), "queries must be finite, row 1"),
        (lambda: k_nearest_neighbors(*good, *(x.to("meta") for x in good), 2), "queries is on meta, points on cpu"),
        (lambda: ball_query(*good, *good, 0.0, 2), "radius must be a number above 0, .* got 0.0"),
        (lambda: ball_query(*good, *good, float("nan"), 2), "radius must be a number above 0, .* got nan"),
        (lambda: farthest_point_sampling(*good, 1, backend="tpu"), "unknown backend 'tpu'; accepted: cpu, triton"),
    ):
        with pytest.raises(ValueError, match=message):
            run()
