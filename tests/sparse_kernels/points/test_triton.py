"""Searches in Triton: parity in the interpreter, ahead-of-time builds for three devices, parity on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels.points import ball_query, farthest_point_sampling, k_nearest_neighbors, reference  # noqa: E402
from sparse_kernels.points import triton as backend  # noqa: E402
from tests.sparse_kernels.interpreter import Interpreter  # noqa: E402
from tests.sparse_kernels.points.clouds import Clouds, draw, packed, radius_of  # noqa: E402
from tests.sparse_kernels.triton_support import DEVICES, assert_fits, build, report  # noqa: E402


def moved(clouds: Clouds, device: str) -> list[Tensor]:
    """Return points, offsets, queries and their offsets on a device."""
    return [x.to(device) for x in (clouds.points, clouds.offsets, clouds.queries, clouds.query_offsets)]


def assert_same(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Same rows, and the same bits of distances."""
    for mine, other in zip(ours, expected, strict=True):
        assert torch.equal(mine.cpu(), other)


def check_parity(seed: int, count: int, device: str) -> None:
    clouds = draw(seed, largest=90)
    here, radius = moved(clouds, device), radius_of(clouds)
    there = moved(clouds, "cpu")
    assert_same(
        k_nearest_neighbors(*here, count, backend="triton"), k_nearest_neighbors(*there, count, backend="reference")
    )
    assert_same(
        ball_query(*here, radius, count, backend="triton"), ball_query(*there, radius, count, backend="reference")
    )
    starts = clouds.offsets.diff().sub(1).clamp(min=0)
    ours = farthest_point_sampling(*here[:2], count, starts=starts.to(device), backend="triton")
    expected = farthest_point_sampling(*there[:2], count, starts=starts, backend="reference")
    assert torch.equal(ours.cpu(), expected)


def check_more_points_than_a_program_takes_at_once(device: str = "cpu") -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2 * backend.SAMPLE_POINTS + 77, 2, generator=generator).mul(3).round()
    offsets = packed(torch.tensor([len(points) - 5, 5]))
    ours = farthest_point_sampling(points.to(device), offsets.to(device), 9, backend="triton")
    assert torch.equal(ours.cpu(), farthest_point_sampling(points, offsets, 9, backend="reference"))


def check_more_neighbors_than_a_program_keeps(device: str = "cpu") -> None:
    points, offsets = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)).round(), torch.tensor([0, 200])
    for count in (backend.MOST_KEPT, backend.MOST_KEPT + 1, 3 * backend.MOST_KEPT + 40):
        there = points, offsets, points[:5], torch.tensor([0, 5])
        ours = k_nearest_neighbors(*(x.to(device) for x in there), count, backend="triton")
        assert_same(ours, k_nearest_neighbors(*there, count, backend="reference"))


def check_operators() -> None:
    clouds = draw(8)
    given = moved(clouds, "cpu")
    starts, tests = torch.zeros(len(clouds.offsets) - 1, dtype=torch.int64), ("test_schema", "test_faketensor")
    torch.library.opcheck(backend.sample_triton, (*given[:2], starts, 3), test_utils=tests)
    torch.library.opcheck(backend.nearest_triton, (*given, 3), test_utils=tests)
    torch.library.opcheck(backend.ball_triton, (*given, 0.5, 3), test_utils=tests)


def check_one_graph() -> None:
    clouds = draw(8)
    given = moved(clouds, "cpu")

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(*given: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(backend.k_nearest_neighbors(*given, 3))

    assert_same(compiled(*given), reference.k_nearest_neighbors(*given, 3))


PARITY = {
    f"parity {seed}": partial(check_parity, seed, count)
    for seed, count in ((8, 3), (22, 5), (25, 16), (28, 70), (33, 3), (34, 1))
}
CHECKS: dict[str, Callable[..., None]] = {
    "more points than a program takes at once": check_more_points_than_a_program_takes_at_once,
    "more neighbours than a program keeps": check_more_neighbors_than_a_program_keeps,
}
INTERPRETED = {name: partial(check, device="cpu") for name, check in (PARITY | CHECKS).items()}
INTERPRETED |= {"operators": check_operators, "one graph": check_one_graph}


@pytest.fixture(scope="module")
def failures(interpreter: Interpreter) -> dict[str, str | None]:
    return interpreter.said(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreter(failures: dict[str, str | None], name: str) -> None:
    assert failures[name] is None, failures[name]


def test_can_run_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.zeros(4, 3)
    assert "CUDA" in (backend.can_run(points) or "")
    monkeypatch.setattr("sparse_kernels._triton.triton", None)
    assert "not installed" in (backend.can_run(points) or "")


TYPES = dict.fromkeys(("p_points", "p_queries", "p_nearest", "p_distances"), "*fp32") | {"squared_radius": "fp32"}
TYPES |= dict.fromkeys(
    ("p_offsets", "p_starts", "p_picks", "p_cloud", "p_begin", "p_end", "p_after", "p_keys", "p_index"), "*i64"
)
TILE = {"BLOCK_M": backend.QUERIES, "BLOCK_N": backend.POINTS}
KERNELS = {
    "sample_kernel": ({"BLOCK": backend.SAMPLE_POINTS}, backend.SAMPLE_OPTIONS),
    "nearest_kernel": (TILE | {"KEPT": backend.MOST_KEPT}, backend.OPTIONS),
    "ball_kernel": (TILE, backend.OPTIONS),
}


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_build_and_fuse_nothing(
    name: str, axes: int, capability: int, kilobytes: int, instruction: str
) -> None:
    constants, options = KERNELS[name]
    built = build(getattr(backend, name), capability, TYPES, constants | {"AXES": axes}, options)
    assert_fits(built, kilobytes)
    assert "fma.rn" not in built.asm["ptx"] and ".ftz" not in built.asm["ptx"]
    assert "FFMA" not in built.asm["sass"] and "FMUL" in built.asm["sass"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PARITY | CHECKS)
def test_gpu(name: str) -> None:
    (PARITY | CHECKS)[name](device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_waits_for_nothing() -> None:
    given = moved(draw(24), "cuda")
    k_nearest_neighbors(*given, 16), ball_query(*given, 0.5, 16), farthest_point_sampling(*given[:2], 30)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = k_nearest_neighbors(*given, 16)
        ball = ball_query(*given, 0.5, 16)
        picks = farthest_point_sampling(*given[:2], 30)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.index.is_cuda and ball.index.is_cuda and picks.shape == (5, 30)


if __name__ == "__main__":
    report(INTERPRETED)
