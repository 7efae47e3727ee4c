"""Block scores in Triton: parity in the interpreter, ahead-of-time builds for three devices, parity on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels import antidiagonal_scores, pooled  # noqa: E402
from sparse_kernels._triton import BARRIERS, compiler_options  # noqa: E402
from sparse_kernels.block_map import uniform_offsets  # noqa: E402
from sparse_kernels.block_scores import triton as backend  # noqa: E402
from sparse_kernels.block_scores import triton_antidiagonals as antidiagonals  # noqa: E402
from sparse_kernels.block_scores import triton_pooled  # noqa: E402
from sparse_kernels.block_scores.triton_pooled import pooled_triton  # noqa: E402
from sparse_kernels.tiles import cut_blocks  # noqa: E402
from tests.sparse_kernels.block_scores.test_block_scores import (  # noqa: E402
    Case,
    antidiagonals_by_hand,
    brute_force,
    make_case,
)
from tests.sparse_kernels.interpreter import Interpreter  # noqa: E402
from tests.sparse_kernels.triton_support import DEVICES, SMALL_DEVICES, assert_fits, build, report  # noqa: E402


def moved(case: Case, device: str) -> Case:
    return Case(*(field if field is None else field.to(device) for field in vars(case).values()))


def assert_close(ours: Tensor, exact: Tensor, bound: float = 2e-5) -> None:
    assert ours.dtype == torch.float32 and ours.shape == exact.shape
    assert ((ours.cpu() - exact).abs() <= bound * exact + 1e-6).all()


def check_mass(dtype: torch.dtype, lengths: tuple[int, int], head_dim: int, orders: bool, device: str = "cpu") -> None:
    case = make_case(0, lengths, head_dim, dtype, orders)
    assert_close(moved(case, device).run("triton"), brute_force(case))


def check_shared_offsets(device: str = "cpu") -> None:
    case = make_case(2, (140, 60), 16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))[None, None]
    shared = replace(case, q_offsets=uniform_offsets(140, 70), q_order=None, kv_order=order)
    exact = brute_force(replace(shared, q_offsets=shared.q_offsets[None, None], kv_order=order.expand(2, 4, -1)))
    assert_close(moved(shared, device).run("triton"), exact)


def check_unusual_lse(device: str = "cpu") -> None:
    case = make_case(3, (20, 30), 16, orders=False)
    case = replace(case, q_offsets=torch.tensor([0, 12, 20]), kv_offsets=torch.tensor([0, 9, 9, 30]))
    case.lse[:, :, 5] = torch.inf  # left out
    mass = moved(case, device).run("triton").cpu()
    assert torch.allclose(mass.sum(-1), torch.tensor([11.0, 8.0]), atol=1e-4) and (mass[..., 1] == 0).all()
    for value, unusual in ((-torch.inf, torch.isinf), (torch.nan, torch.isnan)):
        case.lse[0, 0, 15] = value
        mass = moved(case, device).run("triton").cpu()
        assert unusual(mass[0, 0, 1, [0, 2]]).all() and mass[0, 0, 1, 1] == 0
        assert mass[0, 0, 0].isfinite().all() and mass[1].isfinite().all()


def check_large_logits(device: str = "cpu") -> None:
    case = make_case(4, (30, 40), 16)
    case = replace(case, q=case.q * 30, k=case.k.fill_(1.0))
    lse = (case.q.double().sum(-1) / 4 + torch.log(torch.tensor(40.0).double())).float()
    mass = moved(replace(case, lse=lse), device).run("triton").cpu()
    sizes = case.q_offsets.diff()[..., None] * case.kv_offsets.diff()[:, :, None] / 40
    assert torch.allclose(mass, sizes.expand(2, 4, -1, -1), rtol=1e-3)


def check_antidiagonals(
    dtype: torch.dtype, lengths: tuple[int, int], block: int, stride: int, causal: bool, device: str = "cpu"
) -> None:
    case = moved(make_case(7, lengths, 16, dtype), device)
    scores = antidiagonal_scores(case.q, case.k, block, stride, causal=causal, backend="triton")
    assert_close(scores, antidiagonals_by_hand(case.q.cpu(), case.k.cpu(), block, stride, causal))


def check_slabs(device: str = "cpu") -> None:
    case = moved(make_case(8, (70, 33), 16), device)
    whole = antidiagonal_scores(case.q, case.k, 16, 4, backend="triton")
    with mock.patch.object(antidiagonals, "LEVEL_NUMBERS", 2 * 8 * 4 * 3):  # two query blocks at a time
        assert torch.allclose(antidiagonal_scores(case.q, case.k, 16, 4, backend="triton"), whole, atol=1e-6)


def check_extreme_antidiagonals(device: str = "cpu") -> None:
    q, k = torch.zeros(1, 1, 32, 16, device=device), torch.zeros(1, 1, 32, 16, device=device)
    q += 300
    k[:, :, 8:16] += 300  # one tile holds all the mass; logits of 1e6
    scores = antidiagonal_scores(q, k, 8, 4, backend="triton").cpu()
    assert torch.equal(scores[0, 0], torch.tensor([[0.0, 2.0, 0.0, 0.0]]).expand(4, -1))


def check_pooled(device: str = "cpu") -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype, head_dim in ((torch.float32, 40), (torch.float16, 16)):
        x = torch.randn(2, 100, 3, head_dim, generator=generator).to(dtype).transpose(1, 2)
        shared, order = torch.tensor([[[0, 0, 30, 31, 100]]]).int(), torch.rand(1, 3, 100).argsort(-1)
        each = torch.tensor([[0, 10, 100], [0, 0, 100], [0, 99, 100]]).int()[None]
        for offsets, rows in ((shared, None), (shared, order), (each, order)):
            given = [None if tensor is None else tensor.to(device) for tensor in (x, offsets, rows)]
            assert torch.allclose(pooled_triton(*given).cpu(), pooled(x, offsets, rows), atol=1e-6)


def check_operators() -> None:
    x, offsets = torch.randn(2, 3, 100, 16), torch.tensor([[[0, 30, 100]]]).int()
    torch.library.opcheck(pooled_triton, (x, offsets, None), test_utils=("test_schema", "test_faketensor"))
    case, tests = make_case(6, (20, 30), 16), ("test_schema", "test_faketensor")
    tensors = (case.q, case.k, case.lse, case.q_offsets, case.kv_offsets, case.q_order, case.kv_order)
    torch.library.opcheck(backend.block_mass_triton, (*tensors, 0.3), test_utils=tests)
    arguments = (case.q.mT.contiguous().mT, case.k, 8, 2, 0.3, False)
    torch.library.opcheck(antidiagonals.antidiagonal_scores_triton, arguments, test_utils=tests)


def check_one_graph() -> None:
    case = make_case(6, (20, 30), 16)
    tensors = (case.q, case.k, case.lse, case.q_offsets, case.kv_offsets, case.q_order, case.kv_order, 0.25)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(q: Tensor, k: Tensor) -> Tensor:
        return backend.block_mass(q, k, *tensors[2:]), backend.antidiagonal_scores(q, k, 8, 2, 0.25, False)

    mass, scores = compiled(case.q, case.k)
    assert torch.equal(mass, backend.block_mass(*tensors))
    assert torch.equal(scores, backend.antidiagonal_scores(case.q, case.k, 8, 2, 0.25, False))


SHAPES = [((90, 75), 16, True), ((150, 40), 40, False), ((1, 1), 1, True)]
# The last: blocks of 66 reshaped tokens, scored in two pieces; the one before: pieces of 3.
TILES = [((64, 64), 16, 4, True), ((33, 33), 16, 8, False), ((50, 70), 6, 2, False), ((70, 70), 66, 1, True)]
PARITY = {
    f"{name} {dtype} {case}": partial(check, dtype, *case)
    for name, check, cases in (("mass", check_mass, SHAPES), ("antidiagonals", check_antidiagonals, TILES))
    for dtype in (torch.float32, torch.float16)
    for case in cases
}
CHECKS: dict[str, Callable[..., None]] = {
    "block means": check_pooled,
    "shared offsets": check_shared_offsets,
    "unusual lse": check_unusual_lse,
    "large logits": check_large_logits,
    "slabs": check_slabs,
    "extreme antidiagonals": check_extreme_antidiagonals,
}
# float16 differs in what is loaded and stored: in the slow interpreter one case of each kernel will do.
ENOUGH = SHAPES[0], TILES[0]
FEWER = {
    name: check for name, check in PARITY.items() if "float32" in name or any(str(case) in name for case in ENOUGH)
}
INTERPRETED = FEWER | CHECKS | {"operators": check_operators, "one graph": check_one_graph}


@pytest.fixture(scope="module")
def failures(interpreter: Interpreter) -> dict[str, str | None]:
    return interpreter.said(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreter(failures: dict[str, str | None], name: str) -> None:
    assert failures[name] is None, failures[name]


@pytest.mark.parametrize("rows", [16, 64])
def test_tiles_cover_every_row_once_in_order(rows: int) -> None:
    case = make_case(9, (200, 150))
    tiles = cut_blocks(case.q_offsets, 200, rows)
    for head in range(4):
        ends = case.q_offsets[0, head].tolist()
        count = int(tiles.ends[0, head, -1])
        listed = zip(*(field[0, head].tolist() for field in tiles[:3]), strict=True)
        real = [(block, first, end) for block, first, end in listed if first < end]
        assert len(real) == count and all(end == ends[block + 1] for block, _, end in real)
        covered = [row for _, first, end in real for row in range(first, min(end, first + rows))]
        assert covered == list(range(200))


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode():  # raises where a value would have to be known
        offsets = torch.empty(1, 4, 8, dtype=torch.int32)
        assert cut_blocks(offsets, 200, 64).first.shape == (1, 4, 7 + 200 // 64)
        q, k = torch.empty(2, 4, 200, 16), torch.empty(2, 2, 100, 16)
        mass = backend.block_mass_triton(q, k, q[..., 0], offsets, offsets[:, :, :5], None, None, 0.25)
        scores = antidiagonals.antidiagonal_scores_triton(q, k, 32, 8, 0.25, False)
    assert mass.shape == (2, 4, 7, 4) and scores.shape == (2, 4, 7, 4) and mass.dtype == torch.float32


def test_can_run_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(10)
    assert "CUDA" in (backend.can_run(case.q, case.k) or "")
    assert "float64" in (backend.can_run(case.q.double(), case.k) or "")
    many = torch.zeros(1, 1, 4, 16).expand(300, 300, 4, 16)
    assert "CUDA" in (backend.can_run(many, many) or ""), "it takes so many of both"
    for shape, axis in (((2**16, 1, 4, 16), "batches"), ((1, 2**16, 4, 16), "heads")):
        more = many[:1, :1].expand(shape)
        assert f"takes at most 65,535 {axis}, given 65,536" in (backend.can_run(more, more) or "")
    assert triton_pooled.can_run(many) and not triton_pooled.can_run(many[:1, :1].expand(2**16, 1, 4, 16))
    monkeypatch.setattr("sparse_kernels._triton.triton", None)
    assert "not installed" in (backend.can_run(case.q, case.k) or "")


@pytest.mark.parametrize("buffers", [2, 3])
def test_tiles_leave_shared_memory_to_barriers(buffers: int) -> None:
    row = 2 * 128  # bytes
    for more, expected in ((0, buffers - 1), (BARRIERS, buffers)):
        tiles = row * 128 * (1 + buffers)
        mass = backend.mass_config(128, 2, (128.0, 128.0), gathered=False, shared_memory=tiles + more)
        tiles = row * (128 + 128) * buffers
        levels = antidiagonals.antidiagonal_config(128, 2, 8, shared_memory=tiles + more)
        assert (mass.num_stages, levels.num_stages) == (expected, expected)


@pytest.mark.parametrize("gathered", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["direct", "gathered"])
@pytest.mark.parametrize("head_dim", [64, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
def test_mass_builds(capability: int, kilobytes: int, instruction: str, head_dim: int, gathered: bool) -> None:
    config = backend.mass_config(head_dim, 2, (128.0, 128.0), gathered=gathered, shared_memory=kilobytes * 1024)
    types = {"p_q": "*bf16", "p_k": "*bf16", "p_lse": "*fp32", "p_mass": "*fp32", "scale_log2": "fp32"}
    types |= dict.fromkeys(("p_tiles", "p_pieces", "p_piece_counts"), "*i32")
    types |= dict.fromkeys(("p_q_order", "p_kv_order"), "*i64") | dict.fromkeys(
        ("q_strides", "k_strides"), ("i32",) * 3
    )
    shared = ("tile_strides", "piece_strides", "count_strides", "q_order_strides", "kv_order_strides")
    types |= dict.fromkeys(shared, ("i32",) * 2)
    constants = {"HEAD_DIM": head_dim, "BLOCK_D": config.block_d, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    constants |= {"PRECISION": "ieee"} | ({} if gathered else {"p_q_order": None, "p_kv_order": None})
    built = build(backend.block_mass_kernel, capability, types, constants, config.options())
    assert instruction in built.asm["ptx"]
    assert "cp.async" in built.asm["ptx"], "key rows must be loaded ahead of their use"
    assert_fits(built, kilobytes)


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), SMALL_DEVICES)
def test_mass_builds_for_little_shared_memory(capability: int, kilobytes: int, instruction: str) -> None:
    test_mass_builds(capability, kilobytes, instruction, 128, False)


@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("head_dim", [64, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
def test_antidiagonals_build(capability: int, kilobytes: int, instruction: str, head_dim: int, causal: bool) -> None:
    config = antidiagonals.antidiagonal_config(head_dim, 2, 8, shared_memory=kilobytes * 1024)
    types = {"p_q": "*bf16", "p_k": "*bf16", "p_levels": "*fp32", "p_lse": "*fp32", "scale_log2": "fp32"}
    types |= dict.fromkeys(("q_strides", "k_strides"), ("i32",) * 3)
    constants = config.constants() | {"HEAD_DIM": head_dim, "STRIDE": 16, "CAUSAL": causal, "PRECISION": "ieee"}
    options = compiler_options(config.num_warps, config.num_stages)
    built = build(antidiagonals.antidiagonal_levels_kernel, capability, types, constants, options)
    assert instruction in built.asm["ptx"] and "cp.async" in built.asm["ptx"]
    assert_fits(built, kilobytes)
    types = dict.fromkeys(("p_levels", "p_lse", "p_scores"), "*fp32")
    constants = {"WIDTH": config.width, "PIECES": config.pieces, "CAUSAL": causal, "ROWS": 16, "COLUMNS": 64}
    assert_fits(
        build(antidiagonals.antidiagonal_sums_kernel, capability, types, constants, compiler_options(num_warps=4)),
        kilobytes,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PARITY | CHECKS)
def test_gpu(name: str) -> None:
    (PARITY | CHECKS)[name](device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_waits_for_nothing_in_bfloat16() -> None:
    case = make_case(11, (1500, 1300), 128, torch.bfloat16)
    there = moved(case, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        mass = there.run("triton")
        scores = antidiagonal_scores(there.q, there.k, 64, 8, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(mass, brute_force(case), 1e-4)
    assert_close(scores, antidiagonals_by_hand(case.q, case.k, 64, 8, False), 1e-4)


if __name__ == "__main__":
    report(INTERPRETED)
