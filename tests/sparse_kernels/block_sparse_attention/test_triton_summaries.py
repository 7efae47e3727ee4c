"""Summaries in the Triton kernel: parity in Triton's interpreter, ahead-of-time builds, parity on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels import Summaries, block_sparse_attention  # noqa: E402
from sparse_kernels.block_sparse_attention import triton as backend  # noqa: E402
from tests.sparse_kernels.block_sparse_attention.test_summaries import (  # noqa: E402
    assert_close,
    brute_force,
    random_summaries,
    uniform_case,
)
from tests.sparse_kernels.block_sparse_attention.test_triton import build  # noqa: E402
from tests.sparse_kernels.cases import Case, make_case  # noqa: E402
from tests.sparse_kernels.interpreter import Interpreter  # noqa: E402
from tests.sparse_kernels.triton_support import DEVICES, SMALL_DEVICES, assert_fits, report  # noqa: E402

DTYPES = [torch.float32, torch.float16]
NAMES = ["variable", "variable, orders", "uniform", "all kept", "nothing kept"]


def named_case(name: str, dtype: torch.dtype) -> Case:
    if name.startswith("variable"):
        sizes = dict(batch=1, heads=2, kv_heads=1, q_length=40, kv_length=50, head_dim=16)
        return make_case(1, dtype=dtype, orders="orders" in name, **sizes)
    keep = {"uniform": 0.3, "all kept": 1.0, "nothing kept": 0.0}[name]
    return uniform_case(dtype, keep, blocks=34, batch=1, heads=1)


def check(name: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Hold all that summaries change against float64."""
    case = named_case(name, dtype)
    summaries = random_summaries(case, (1, 1) if "orders" in name else (1, case.q.shape[1]))
    out, lse, visited = (x.cpu() for x in run(case, summaries, device))
    assert_close(case, summaries, out, lse, dtype)
    exact = brute_force(case, summaries, visited_only=True)[1]
    assert torch.equal(visited.isfinite(), exact.isfinite())
    assert torch.allclose(visited.double(), exact, atol=5e-6 if dtype == torch.float32 else 3e-2)


def run(case: Case, summaries: Summaries, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the output, the LSE of all that answered and that of the visited keys."""
    moved = [x if x is None else x.to(device) for x in (case.q, case.k, case.v, case.q_order, case.kv_order)]
    fields = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in vars(case.block_map).items()}
    block_map = dataclasses.replace(case.block_map, **fields)
    options: dict[str, Any] = dict(q_order=moved[3], kv_order=moved[4], backend="triton")
    options["summaries"] = Summaries(*(x.to(device) for x in vars(summaries).values()))
    out, lse = block_sparse_attention(*moved[:3], block_map, **options, return_lse=True)
    return out, lse, block_sparse_attention(*moved[:3], block_map, **options, return_lse="visited")[1]


@pytest.fixture(scope="module")
def interpreter_report(interpreter: Interpreter) -> dict[str, Any]:
    return interpreter.said(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_interpreter_parity(interpreter_report: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    failure = interpreter_report[f"{name} {dtype}"]
    assert failure is None, failure


@pytest.mark.parametrize("key_block", [128, pytest.param(0, marks=pytest.mark.slow)], ids=["blocks", "windows"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
def test_ahead_of_time_build(capability: int, kilobytes: int, instruction: str, head_dim: int, key_block: int) -> None:
    config = backend.launch_config(
        head_dim,
        2,
        128.0,
        key_block,
        shared_memory=kilobytes * 1024,
        asynchronous_mma=capability >= 90,
    )
    built = build(capability, head_dim, config, False, key_block, summaries=True)
    assert instruction in built.asm["ptx"]
    assert_fits(built, kilobytes)


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), SMALL_DEVICES)
def test_builds_for_little_shared_memory(capability: int, kilobytes: int, instruction: str) -> None:
    """With tiles of 16 keys on the first device: those of summaries are as small there."""
    key_block = 16 if capability == 86 else 128
    config = backend.launch_config(128, 2, 128.0, key_block, shared_memory=kilobytes * 1024, asynchronous_mma=False)
    assert config.block_n == min(key_block, 32)
    built = build(capability, 128, config, False, key_block, summaries=True)
    assert instruction in built.asm["ptx"]
    assert_fits(built, kilobytes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gpu_parity(name: str, dtype: torch.dtype) -> None:
    check(name, dtype, "cuda")


if __name__ == "__main__":
    report({f"{name} {dtype}": lambda n=name, d=dtype: check(n, d) for name in NAMES for dtype in DTYPES})
