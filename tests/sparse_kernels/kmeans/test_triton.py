"""K-means in Triton: parity in the interpreter, ahead-of-time builds for three devices, parity on a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels import Clusters, kmeans  # noqa: E402
from sparse_kernels._triton import BARRIERS, compiler_options  # noqa: E402
from sparse_kernels.kmeans import triton as backend  # noqa: E402
from tests.sparse_kernels.interpreter import Interpreter  # noqa: E402
from tests.sparse_kernels.kmeans.test_kmeans import assert_consistent, distances, lloyd, make_rows  # noqa: E402
from tests.sparse_kernels.triton_support import DEVICES, assert_fits, build, report  # noqa: E402

NO_TOLERANCE = 0.0


def run(x: Tensor, start: Tensor, iterations: int, tolerance: float = NO_TOLERANCE) -> Clusters:
    """Call the kernels with labels that start out of range: what is not written shows."""
    labels = torch.full(x.shape[:3], 2**30, dtype=torch.int32, device=x.device)
    with mock.patch.object(backend, "_empty_labels", return_value=labels):
        return kmeans(x, start, iterations=iterations, tolerance=tolerance, backend="triton")


def check_parity(dtype: torch.dtype, iterations: int, rows: int, clusters: int, head_dim: int, device: str) -> None:
    x, start = (tensor.to(device, dtype) for tensor in make_rows(rows, 1, 2, rows, clusters, head_dim))
    labels, centroids = lloyd(x.cpu(), start.cpu(), iterations)
    ours = run(x, start, iterations)
    ours = Clusters(*(field.cpu() for field in vars(ours).values()))
    assert torch.equal(ours.labels.long(), labels)
    assert (ours.centroids - centroids).abs().max() < 3e-6
    assert_consistent(ours)


def check_one_cluster_holds_nearly_all(device: str = "cpu") -> None:
    x = torch.randn(1, 2, 400, 16, generator=torch.Generator().manual_seed(1)).to(device)
    x[:, :, ::40] += 40
    start = torch.stack([x[:, :, 0], x[:, :, 1], x[:, :, 2] - 400], 2)
    ours = run(x, start, 3)
    assert sorted(ours.sizes[0, 0].tolist()) == [0, 10, 390]
    assert (ours.centroids.cpu() - lloyd(x.cpu(), start.cpu(), 3)[1]).abs().max() < 1e-5
    assert torch.equal(ours.centroids[:, :, 2], start[:, :, 2])


def check_first_of_equal_centroids_wins(device: str = "cpu") -> None:
    x, start = (tensor.to(device).round() for tensor in make_rows(2, 1, 1, 80, 5, 8))  # every product is exact
    assert torch.equal(run(x, start.repeat(1, 1, 9, 1), 0).labels, run(x, start, 0).labels)


def check_each_head_stops_by_itself(device: str = "cpu") -> None:
    x, start = (tensor.to(device) for tensor in make_rows(3, 1, 2, 150, 6, 8))
    settled = kmeans(x, start, iterations=60, tolerance=0.0, backend="reference").centroids
    start = torch.cat([settled[:, :1], start[:, 1:]], 1)
    together, expected = run(x, start, 6, 0.05), kmeans(x, start, iterations=6, tolerance=0.05, backend="reference")
    assert torch.equal(together.labels, expected.labels)
    assert (together.centroids - expected.centroids).abs().max() < 3e-6
    once = run(x, start, 1)
    for tolerance in (1e9, float("inf")):
        stopped = run(x, start, 4, tolerance)
        assert torch.equal(stopped.centroids, once.centroids) and torch.equal(stopped.labels, once.labels)


def check_adversarial_values(device: str = "cpu") -> None:
    x, start = (tensor.to(device) for tensor in make_rows(4, 1, 2, 60, 6, 8))
    expected = run(x, start, 2)
    x[0, 0, 7] = torch.nan
    ours = run(x, start, 2)
    assert ((ours.labels >= 0) & (ours.labels < 6)).all() and torch.equal(ours.labels[0, 1], expected.labels[0, 1])
    constant = torch.ones(1, 1, 40, 8, device=device, dtype=torch.float16) * 60000
    ours = run(constant, torch.cat([constant[:, :, :1], constant[:, :, :2] / 2], 2).float(), 2)
    assert (ours.labels == 0).all() and (ours.centroids[0, 0, 0] == 60000).all()
    far = torch.full((1, 1, 3, 8), 1e6, device=device)  # beyond float16: must stay finite and lose
    far[:, :, 0] = 59000
    assert (run(constant, far, 1).labels == 0).all()


def check_strides(device: str = "cpu") -> None:
    x, start = (tensor.to(device) for tensor in make_rows(5, 2, 2, 50, 4, 8))
    expected = run(x, start, 2)
    for other in (x.transpose(1, 2).contiguous().transpose(1, 2), x.mT.contiguous().mT):
        ours = run(other, start.mT.contiguous().mT, 2)
        assert all(torch.equal(*pair) for pair in zip(vars(ours).values(), vars(expected).values(), strict=True))


def check_operator() -> None:
    x, start = make_rows(6, 1, 2, 20, 4, 8)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(backend.kmeans_triton, (x.transpose(0, 1), start.transpose(0, 1), 1, 0.0), test_utils=tests)


def check_one_graph() -> None:
    x, start = make_rows(6, 1, 2, 20, 4, 8)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        clusters = backend.forward(x, start, 2, 0.0)
        return clusters.order, clusters.centroids

    expected = run(x, start, 2)
    assert all(map(torch.equal, compiled(x, start), (expected.order, expected.centroids)))


PARITY = {
    f"{dtype} {case}": partial(check_parity, dtype, *case)
    for dtype in (torch.float32, torch.float16)
    for case in ((0, 33, 3, 16), (2, 90, 40, 24), (1, 1, 1, 1), (2, 140, 66, 72))
}
CHECKS: dict[str, Callable[..., None]] = {
    "one cluster holds nearly all": check_one_cluster_holds_nearly_all,
    "first of equal centroids": check_first_of_equal_centroids_wins,
    "each head stops by itself": check_each_head_stops_by_itself,
    "adversarial values": check_adversarial_values,
    "strides": check_strides,
}
# float16 differs in what is loaded: in the slow interpreter its largest case is left out.
FEWER = {name: check for name, check in PARITY.items() if name != f"{torch.float16} (2, 140, 66, 72)"}
INTERPRETED = {name: partial(check, device="cpu") for name, check in (FEWER | CHECKS).items()}
INTERPRETED |= {"operator": check_operator, "one graph": check_one_graph}


@pytest.fixture(scope="module")
def failures(interpreter: Interpreter) -> dict[str, str | None]:
    return interpreter.said(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreter(failures: dict[str, str | None], name: str) -> None:
    assert failures[name] is None, failures[name]


def test_two_halves_keep_the_centroids() -> None:
    centroids = torch.randn(1, 1, 50, 16, generator=torch.Generator().manual_seed(0)) * 3
    for dtype, error in ((torch.bfloat16, 2**-16), (torch.float16, 2**-20)):
        high, low = backend.split_centroids(centroids, dtype)
        assert high.dtype == low.dtype == dtype
        assert ((high.double() + low.double() - centroids).abs() <= error * centroids.abs() + 2**-24).all()
    assert backend.split_centroids(centroids, torch.float32)[1] is None


@pytest.mark.parametrize("clusters", [7, 2**14, 2**15])
def test_rows_are_sorted_by_head_and_cluster(clusters: int) -> None:
    labels = torch.randint(clusters, (2, 2, 90), generator=torch.Generator().manual_seed(0)).int()
    labels[1, 1, 5] = clusters - 1
    order, keys, ends = backend.sort_rows(labels, clusters)
    flat = (labels.view(4, 90) + torch.arange(4)[:, None] * clusters).flatten()
    assert keys.dtype == (torch.int16 if clusters == 7 or clusters == 2**13 else torch.int32)
    assert torch.equal(order, flat.sort(stable=True).indices)
    assert torch.equal(ends.long(), torch.searchsorted(flat.sort().values, torch.arange(4 * clusters + 1)))


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode():  # raises where a value would have to be known
        labels = torch.empty(2, 3, 500, dtype=torch.int32)
        order, _, ends = backend.sort_rows(labels, 9)
        assert (order.shape, ends.shape) == ((3000,), (55,))
        x, start = torch.empty(2, 3, 500, 16, dtype=torch.bfloat16), torch.empty(2, 3, 9, 16, dtype=torch.bfloat16)
        fields = backend.kmeans_triton(x, start, 5, 1e-4)
    assert [field.shape for field in fields] == [(2, 3, 500), (2, 3, 9, 16), (2, 3, 9), (2, 3, 500), (2, 3, 10)]
    kinds = [torch.int32, torch.float32, torch.int32, torch.int64, torch.int32]
    assert [field.dtype for field in fields] == kinds


def test_can_run_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    x, start = make_rows(7)
    assert "CUDA" in (backend.can_run(x, start) or "") and "float64" in (backend.can_run(x.double(), start) or "")
    assert "at most 256" in (backend.can_run(x.new_empty(1, 1, 4, 300), start) or "")
    many = torch.zeros(1, 1, 4, 16).expand(300, 300, 4, 16)
    assert "takes at most 65,535 heads in all, given 90,000" in (backend.can_run(many, many) or "")
    monkeypatch.setattr("sparse_kernels._triton.triton", None)
    assert "not installed" in (backend.can_run(x, start) or "")


def test_a_tile_of_centroids_never_falls_below_one_instruction() -> None:
    for itemsize in (2, 4):
        config = backend.assign_config(256, itemsize, shared_memory=64 * 1024, asynchronous_mma=False)
        assert config.block_k == 16


def test_tiles_leave_shared_memory_to_barriers() -> None:
    tiles = 64 * (128 * 2 + 4 * 64 * 3)  # bytes, of three buffers
    for more, stages in ((0, 2), (BARRIERS, 3)):
        config = backend.assign_config(64, 2, shared_memory=2 * (tiles + more), asynchronous_mma=False)
        assert config.num_stages == stages
    tiles = 256 * (128 * 2 + 4 * 32 * 2)  # of two
    for more, centroids in ((0, 16), (BARRIERS, 32)):
        config = backend.assign_config(256, 2, shared_memory=tiles + more, asynchronous_mma=False)
        assert config.block_k == centroids


@pytest.mark.parametrize("head_dim", [64, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
def test_assignment_builds(capability: int, kilobytes: int, instruction: str, kind: str, head_dim: int) -> None:
    itemsize = 2 if kind == "bf16" else 4
    config = backend.assign_config(
        head_dim, itemsize, shared_memory=kilobytes * 1024, asynchronous_mma=capability >= 90
    )
    types = dict.fromkeys(("p_x", "p_high", "p_low"), f"*{kind}") | {"p_labels": "*i32", "tolerance": "fp32"}
    types |= dict.fromkeys(("p_norms", "p_farthest"), "*fp32") | {"x_strides": ("i32",) * 3}
    constants = {"HEAD_DIM": head_dim, "BLOCK_D": config.block_d, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    constants |= {"PRECISION": "ieee"} if itemsize == 2 else {"PRECISION": "tf32x3", "p_low": None}
    built = build(backend.assign_kernel, capability, types, constants, config.options())
    assert instruction in built.asm["ptx"]
    assert "cp.async" in built.asm["ptx"], "centroids must be loaded ahead of their use"
    assert_fits(built, kilobytes)


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
@pytest.mark.parametrize("kernel", ["sum_chunks_kernel", "update_kernel"])
def test_sums_build(kernel: str, capability: int, kilobytes: int, instruction: str) -> None:
    types = dict.fromkeys(("p_x", "p_high", "p_low"), "*bf16") | {"p_order": "*i64", "p_keys": "*i16"}
    types |= {"p_ends": "*i32", "x_strides": ("i32",) * 3, "tolerance": "fp32"}
    types |= dict.fromkeys(("p_farthest", "p_chunks", "p_centroids", "p_norms", "p_moves"), "*fp32")
    constants = {"HEAD_DIM": 128, "BLOCK_D": 128, "CHUNK": backend.CHUNK, "ROWS": backend.SUM_ROWS}
    built = build(getattr(backend, kernel), capability, types, constants, compiler_options(num_warps=4))
    assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", built.asm["ptx"], re.MULTILINE), "sums must not be atomic"
    assert_fits(built, kilobytes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PARITY | CHECKS)
def test_gpu(name: str) -> None:
    (PARITY | CHECKS)[name](device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_waits_for_nothing_and_repeats_its_bits() -> None:
    x, start = (tensor.to("cuda", torch.bfloat16) for tensor in make_rows(8, 2, 4, 5000, 64, 128))
    first = run(x, start, 4, 1e-4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        others = [backend.forward(x, start, 4, 1e-4) for _ in range(200)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(other.centroids, first.centroids) for other in others)
    nearest = distances(x[0, 0].cpu(), run(x, start, 0).centroids[0, 0].cpu())
    ours = nearest.gather(-1, run(x, start, 0).labels[0, 0].cpu().long()[:, None])
    assert ((ours[:, 0] - nearest.amin(-1)) <= 1e-4 * nearest.amin(-1) + 1e-4).all()


if __name__ == "__main__":
    report(INTERPRETED)
