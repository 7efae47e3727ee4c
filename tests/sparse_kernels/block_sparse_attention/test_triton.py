"""The Triton kernel: parity in Triton's interpreter, ahead-of-time builds for three devices, parity on a GPU."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels._triton import compiler_options  # noqa: E402
from sparse_kernels.block_map import BlockMap, uniform_offsets  # noqa: E402
from sparse_kernels.block_sparse_attention import triton as backend  # noqa: E402
from sparse_kernels.block_sparse_attention import triton_windows  # noqa: E402
from tests.sparse_kernels.interpreter import Interpreter  # noqa: E402
from tests.sparse_kernels.triton_support import DEVICES, assert_fits  # noqa: E402
from tests.sparse_kernels.triton_support import build as compile_kernel  # noqa: E402

# Layouts of q whose strides the fake kernel has to predict.
LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 2, 20, 16),
    "transposed": lambda: torch.randn(2, 20, 2, 16).transpose(1, 2),
    "slice of a fused projection": lambda: torch.randn(2, 20, 3, 2, 16)[:, :, 1].transpose(1, 2),
    "expanded": lambda: torch.randn(1, 1, 20, 16).expand(2, 2, 20, 16),
    "channels not contiguous": lambda: torch.randn(2, 2, 16, 20).mT,
}


@dataclass(frozen=True)
class Case:
    """One call; block sizes of None mean blocks cut at random, differently in each head, some of them empty."""

    name: str
    q_block: int | None = 32
    kv_block: int | None = 32
    q_len: int = 80
    kv_len: int = 70
    head_dim: int = 64
    kv_heads: int = 4
    keep: float = 0.5
    shared_map: bool = False
    orders: tuple[int, int] | None = None
    scale: float = 1.3


CASES = [
    Case("ragged", q_block=24, kv_block=40),
    Case("everything kept", keep=1.0, shared_map=True),
    Case("nothing kept", keep=0.0),
    Case("mostly empty rows", keep=0.15, q_block=16, kv_block=16, q_len=50, kv_len=50),
    Case("query blocks above one tile", q_block=150, kv_block=90, q_len=150, kv_len=90, shared_map=True, keep=1.0),
    Case("variable", q_block=None, kv_block=None, q_len=110),
    Case("variable keys, shared map", kv_block=None, kv_len=110, shared_map=True),
    Case("orders per head", orders=(2, 4)),
    Case("shared orders", orders=(1, 1), q_len=33),
    Case("scale of zero", scale=0.0),
    Case("scale below zero", scale=-1.3, kv_block=None),
    Case("grouped heads, head_dim 80", kv_heads=2, head_dim=80),
    Case("a block longer than the keys", kv_block=2**20 + 8, keep=1.0),
    Case("all at once", q_block=None, kv_block=None, head_dim=80, kv_heads=1, orders=(1, 4), keep=0.4),
]
NAMES = [case.name for case in CASES]
# float16 differs in what is loaded and stored: in the slow interpreter these cases will do.
HALF = ("ragged", "variable", "shared orders", "all at once")
HOPPER = ("everything kept", "grouped heads, head_dim 80", "orders per head", "variable")
WINDOWED = [("variable", 16), ("variable keys, shared map", 64), ("everything kept", 64), ("ragged", 32)]
INTERPRETED = [*((name, torch.float32) for name in NAMES), *((name, torch.float16) for name in HALF)]


def offsets(case: Case, length: int, block: int | None) -> Tensor:
    """Block borders, (1 1 n+1) for equal blocks, (2 4 n+1) for random cuts."""
    if block is not None:
        return uniform_offsets(length, block).view(1, 1, -1)
    cuts = torch.randint(0, length + 1, (2, 4, 5)).sort(-1).values
    cuts[..., 1] = cuts[..., 2]
    return torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=length).int()


def inputs(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Arguments of `forward` and the mask of kept blocks."""
    torch.manual_seed(NAMES.index(case.name))
    q = torch.randn(2, case.q_len, 4, case.head_dim).to(device, dtype).transpose(1, 2)
    k, v = torch.randn(2, 2, case.kv_heads, case.kv_len, case.head_dim).to(device, dtype)
    q_offsets, kv_offsets = offsets(case, case.q_len, case.q_block), offsets(case, case.kv_len, case.kv_block)
    heads = (1, 1) if case.shared_map else (2, 4)
    mask = torch.rand(*heads, q_offsets.shape[-1] - 1, kv_offsets.shape[-1] - 1) < case.keep
    block_map = BlockMap.from_dense(mask.to(device), q_offsets.to(device), kv_offsets.to(device), case.kv_block)
    orders = [
        case.orders and torch.rand(*case.orders, length).argsort(-1).to(device) for length in (case.q_len, case.kv_len)
    ]
    arguments = (q, k, v, block_map, orders[0], orders[1], case.scale / math.sqrt(case.head_dim))
    return {"arguments": arguments, "mask": mask}


def allowed_pairs(mask: Tensor, arguments: tuple, b: int, h: int) -> Tensor:
    """Query-key pairs of one head that are computed, in the callers' row order, by plain loops."""
    q, k, _, block_map, q_order, kv_order, _ = arguments

    def pick(tensor: Tensor) -> Tensor:
        return tensor[b % tensor.shape[0], h % tensor.shape[1]].cpu()

    rows, columns, kept = pick(block_map.q_offsets).tolist(), pick(block_map.kv_offsets).tolist(), pick(mask)
    pairs = torch.zeros(q.shape[2], k.shape[2], dtype=torch.bool)
    for i, j in kept.nonzero().tolist():
        pairs[rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = True
    if q_order is None:
        return pairs
    return torch.zeros_like(pairs).index_put((pick(q_order)[:, None], pick(kv_order)[None, :]), pairs)


def attend(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Masked attention of one head in the tensors' own precision."""
    scores = (q @ k.mT * scale).masked_fill(~pairs, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1)


def error_and_budget(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, float | bool]:
    """Largest error of the kernel against float64, and what a plain computation in the same precision gets wrong."""
    call = inputs(case, dtype, device)
    q, k, v, _, _, _, scale = call["arguments"]
    out, lse = (result.cpu() for result in backend.forward(*call["arguments"]))
    result: dict[str, float | bool] = {"out": 0.0, "lse": 0.0, "out_budget": 1e-6, "lse_budget": 1e-5, "empty": True}
    for b, h in ((b, h) for b in range(2) for h in range(4)):
        head = [x[b, h * x.shape[1] // 4].cpu() for x in (q, k, v)]
        pairs = allowed_pairs(call["mask"], call["arguments"], b, h)
        exact = attend(*(x.double() for x in head), pairs, scale)
        plain = attend(*head, pairs, scale)
        empty = ~pairs.any(-1)
        result["empty"] &= bool((out[b, h][empty] == 0).all() and (lse[b, h][empty] == -torch.inf).all())
        for name, got, want, rough in zip(("out", "lse"), (out[b, h], lse[b, h]), exact, plain, strict=True):
            if not empty.all():
                error, rough_error = ((x.double() - want)[~empty].abs().max().item() for x in (got, rough))
                result[name] = max(result[name], error) if error == error else math.inf
                result[f"{name}_budget"] = max(result[f"{name}_budget"], 2 * rough_error)
    return result


def check(result: dict[str, float | bool]) -> None:
    assert result["empty"], "an empty row must give zeros and an LSE of -inf"
    assert result["out"] <= result["out_budget"] and result["lse"] <= result["lse_budget"], result


def operator_arguments(q: Tensor) -> tuple:
    block_map = BlockMap.uniform(torch.ones(1, 1, 2, 2, dtype=torch.bool), 10, 10, 20, 20)
    fields = (block_map.counts, block_map.indices, block_map.q_offsets, block_map.kv_offsets)
    return (q, q, q, *fields, None, None, 0.25)


def compiled_equals_eager() -> bool:
    q, k, v, *rest = inputs(CASES[0], torch.float32)["arguments"]
    compiled = torch.compile(backend.forward, fullgraph=True, backend="eager")(q, k, v, *rest)
    return all(torch.equal(a, b) for a, b in zip(compiled, backend.forward(q, k, v, *rest), strict=True))


def error_as_on_hopper(name: str) -> dict[str, float | bool]:
    """What `error_and_budget` returns where tiles are those of a device that multiplies from shared memory."""
    limits, backend.device_limits = backend.device_limits, lambda x: (227 * 1024, True)
    try:
        return error_and_budget(CASES[NAMES.index(name)], torch.float16)
    finally:
        backend.device_limits = limits


def windows_take_every_visited_key_once(name: str, window: int) -> bool:
    case = CASES[NAMES.index(name)]
    call = inputs(case, torch.float32)
    block_map = call["arguments"][3]
    fields = block_map.counts, block_map.indices, block_map.kv_offsets
    counts, starts, visited = triton_windows.list_windows(*fields, case.kv_len, window)
    wanted, fits = block_map.to_mask(), True
    rows = block_map.q_offsets[..., :-1].long().clamp(max=case.q_len - 1).expand(*counts.shape)
    for b, h, block in itertools.product(*map(range, counts.shape)):
        if block_map.q_offsets[b % block_map.q_offsets.shape[0], h % block_map.q_offsets.shape[1]].diff()[block] == 0:
            continue  # no query tells what it would visit
        firsts = starts[b, h, block, : counts[b, h, block]]
        bits = visited[b, h, block, : counts[b, h, block], None] >> torch.arange(window) & 1
        keys = (firsts[:, None] + torch.arange(window))[bits.bool()]
        fits &= torch.equal(keys, wanted[b, h, rows[b, h, block]].nonzero()[:, 0])
        fits &= bool((firsts.diff() >= window).all() and (bits[:, 0] == 1).all())
    return fits


def windows_of_a_doubled_block_fit() -> bool:
    """Nobody checks lists on a GPU: one that is wrong must not write beyond its room."""
    counts, indices = torch.tensor([[[4, 1]]]).int(), torch.zeros(1, 1, 2, 4).int()
    offsets = torch.tensor([[[0, 1000]]]).int()
    windows, starts, _ = triton_windows.list_windows(counts, indices, offsets, 1000, 64)
    whole = torch.equal(starts[0, 0, 1, :16], torch.arange(16).int() * 64)
    return windows.tolist() == [[[starts.shape[-1], 16]]] and whole


def report_from_interpreter() -> dict[str, Any]:
    """Everything that needs the kernel to run on CPU; called in a process of its own."""
    report: dict[str, Any] = {"compiled": compiled_equals_eager()}
    report |= {f"{name} {window}": windows_take_every_visited_key_once(name, window) for name, window in WINDOWED}
    report["a doubled block"] = windows_of_a_doubled_block_fit()
    report |= {f"{name} as on Hopper": error_as_on_hopper(name) for name in HOPPER}
    for name, dtype in INTERPRETED:
        report[f"{name} {dtype}"] = error_and_budget(CASES[NAMES.index(name)], dtype)
    for name, make in LAYOUTS.items():
        utilities = ("test_schema", "test_faketensor")
        report[name] = torch.library.opcheck(
            backend.block_sparse_attention_triton, operator_arguments(make()), test_utils=utilities
        )
    return report


@pytest.fixture(scope="module")
def interpreter_report(interpreter: Interpreter) -> dict[str, Any]:
    return interpreter.said(__file__)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), INTERPRETED, ids=str)
def test_interpreter_parity(interpreter_report: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    check(interpreter_report[f"{name} {dtype}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", HOPPER)
def test_interpreter_parity_of_the_copy_engine(interpreter_report: dict[str, Any], name: str) -> None:
    check(interpreter_report[f"{name} as on Hopper"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "window"), WINDOWED)
def test_windows_take_every_visited_key_once(interpreter_report: dict[str, Any], name: str, window: int) -> None:
    assert interpreter_report[f"{name} {window}"]


@pytest.mark.slow
def test_windows_of_a_doubled_block_fit(interpreter_report: dict[str, Any]) -> None:
    assert interpreter_report["a doubled block"]


def test_what_the_copy_engine_cannot_read() -> None:
    x = torch.zeros(2, 3, 40, 64, dtype=torch.bfloat16)
    assert backend.can_describe(x) and backend.can_describe(x.transpose(1, 2)) and backend.can_describe(x[:1, :, 1:])
    assert not backend.can_describe(x[:1].expand(2, 3, 40, 64)) and not backend.can_describe(x[..., 4:])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(interpreter_report: dict[str, Any], layout: str) -> None:
    assert interpreter_report[layout] == {"test_schema": "SUCCESS", "test_faketensor": "SUCCESS"}


@pytest.mark.slow
def test_one_graph_under_compile(interpreter_report: dict[str, Any]) -> None:
    assert interpreter_report["compiled"]


def test_fake_outputs() -> None:
    with FakeTensorMode():
        q = torch.empty(2, 40, 6, 80, dtype=torch.bfloat16).transpose(1, 2)
        out, lse = backend.block_sparse_attention_triton(*operator_arguments(q))
    assert (out.shape, out.stride(), out.dtype) == (q.shape, q.stride(), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((2, 6, 40), torch.float32)


@pytest.mark.parametrize("block_m", [16, 64])
def test_tiles_cover_every_row_once_longest_first(block_m: int) -> None:
    case = replace(CASES[5], q_len=200)
    call = inputs(case, torch.float32)
    block_map = call["arguments"][3]
    tiles = backend.query_tiles(block_map.counts, block_map.q_offsets, case.q_len, block_m)
    for b, h in ((b, h) for b in range(2) for h in range(4)):
        real = [tile for tile in tiles[b, h].tolist() if tile[1] < tile[2]]
        assert tiles[b, h, : len(real)].tolist() == real, "surplus tiles come last"
        rows = [row for _, first, end, _ in real for row in range(first, min(end, first + block_m))]
        assert sorted(rows) == list(range(case.q_len))
        assert all(tile[3] == block_map.counts[b, h, tile[0]] for tile in real)
        assert [tile[3] for tile in real] == sorted((tile[3] for tile in real), reverse=True)


def test_tiles_wait_for_nothing() -> None:
    block_map = inputs(CASES[5], torch.float32)["arguments"][3]
    with FakeTensorMode() as mode:  # raises where a value would have to be known
        fields = mode.from_tensor(block_map.counts), mode.from_tensor(block_map.q_offsets)
        assert backend.query_tiles(*fields, 110, 64).shape == (2, 4, block_map.counts.shape[-1] + 110 // 64, 4)


def reason(q: Tensor, k: Tensor) -> str:
    return backend.can_run(q, k, k, inputs(CASES[0], torch.float32)["arguments"][3]) or ""


def test_can_run_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(1, 1, 100, 64)
    assert "CUDA" in reason(q, q)
    assert "float64" in reason(q.double(), q.double()) and "float16" in reason(q, q.half())
    assert "72" in reason(q.new_zeros(1, 1, 100, 72), q.new_zeros(1, 1, 100, 72))
    assert "backward" in reason(q.clone().requires_grad_(), q)
    for shape, axis in (((2**16, 1, 100, 64), "batches"), ((1, 2**16, 100, 64), "heads")):
        assert f"takes at most 65,535 {axis}, given 65,536" in reason(q.expand(shape), q.expand(shape))
    assert "CUDA" in reason(q.expand(2**16 - 1, 1, 100, 64), q.expand(2**16 - 1, 1, 100, 64))
    monkeypatch.setattr(backend, "triton", None)
    assert "not installed" in reason(q, q)


@pytest.mark.slow
def test_module_loads_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; from sparse_kernels.block_sparse_attention import triton; "
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code + "print(triton.can_run(None, None, None, None))"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "not installed" in process.stdout, process.stderr


def build(
    capability: int, head_dim: int, config: backend.LaunchConfig, gathered: bool, key_block: int,
    summaries: bool = False,
) -> Any:  # fmt: skip
    """Compiles the kernel for bfloat16 as a launch on that device would; `gathered` queries go through an order."""
    constants = {"HEAD_DIM": head_dim, "BLOCK_D": config.block_d, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    constants |= {"LSE_OF_VISITED": summaries, "PRECISION": "ieee", "KEY_BLOCK": key_block}
    constants |= {"TMA": config.tma} | ({"p_visited": None} if key_block else {})
    means = ("p_summary_keys", "p_summary_values", "p_summary_weights")
    constants |= {} if summaries else dict.fromkeys(means)
    constants |= {} if gathered else {"p_q_order": None}
    types = dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), "*bf16") | {"p_q_order": "*i64"}
    types |= dict.fromkeys(("p_tiles", "p_indices"), "*i32") | {"p_lse": "*fp32", "scale_log2": "fp32"}
    types |= {"p_visited": "*i64"}
    types |= dict.fromkeys(means[:2], "*bf16") | {means[2]: "*fp32"}
    if config.tma:
        types |= dict.fromkeys(("p_k", "p_v"), f"tensordesc<bf16[1,1,{config.block_n},{config.block_d}]>")
    strides = ("summary_strides", "tile_strides", "q_order_strides")
    types |= dict.fromkeys(strides, ("i32",) * 2)
    strides = ("q_strides", "k_strides", "v_strides", "out_strides", "index_strides", "weight_strides")
    types |= dict.fromkeys(strides, ("i32",) * 3)
    return compile_kernel(backend.block_sparse_attention_fwd_kernel, capability, types, constants, config.options())


@pytest.mark.parametrize("key_block", [128, pytest.param(0, marks=pytest.mark.slow)], ids=["blocks", "windows"])
@pytest.mark.parametrize("gathered", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["direct", "gathered"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
def test_ahead_of_time_build(
    capability: int, kilobytes: int, instruction: str, head_dim: int, gathered: bool, key_block: int
) -> None:
    config = backend.launch_config(
        head_dim,
        2,
        128.0,
        key_block,
        shared_memory=kilobytes * 1024,
        asynchronous_mma=capability >= 90,
    )
    built = build(capability, head_dim, config, gathered, key_block)
    assert instruction in built.asm["ptx"]
    loads = "cp.async.bulk.tensor" if config.tma else "cp.async.cg"
    assert loads in built.asm["ptx"], "key rows must be loaded ahead of their use"
    assert_fits(built, kilobytes)


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
def test_windows_build(capability: int, kilobytes: int, instruction: str) -> None:
    types = dict.fromkeys(("p_counts", "p_indices", "p_kv_offsets", "p_starts", "p_window_counts"), "*i32")
    types |= {"p_visited": "*i64"}
    types |= {"index_strides": ("i32",) * 3} | dict.fromkeys(("count_strides", "kv_offset_strides"), ("i32",) * 2)
    options = compiler_options(num_warps=1)
    built = compile_kernel(triton_windows.list_windows_kernel, capability, types, {"WINDOW": 64}, options)
    assert_fits(built, kilobytes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["ragged", "all at once"])
def test_gpu_waits_for_nothing(name: str) -> None:
    case = CASES[NAMES.index(name)]
    arguments = inputs(case, torch.bfloat16, "cuda")["arguments"]
    first, _ = backend.forward(*arguments)  # builds the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        others = [backend.forward(*arguments)[0] for _ in range(200)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gpu_parity(case: Case, dtype: torch.dtype) -> None:
    check(error_and_budget(case, dtype, "cuda"))


if __name__ == "__main__":
    print(json.dumps(report_from_interpreter()))
