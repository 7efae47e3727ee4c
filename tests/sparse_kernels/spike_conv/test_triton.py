"""Event-driven convolution in Triton: parity in the interpreter, ahead-of-time builds for three devices."""

from __future__ import annotations

from functools import partial

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels.spike_conv import spike_conv  # noqa: E402
from sparse_kernels.spike_conv import triton as backend  # noqa: E402
from tests.sparse_kernels.interpreter import Interpreter  # noqa: E402
from tests.sparse_kernels.spike_conv.test_spike_conv import draw  # noqa: E402
from tests.sparse_kernels.triton_support import DEVICES, assert_fits, build, report  # noqa: E402

SEEDS = 47, 83, 105, 143, 146  # few pairs: the interpreter is slow


def check_parity(seed: int, dtype: torch.dtype, device: str) -> None:
    spikes, weight, kernel_map = draw(seed, dtype)
    expected = spike_conv(spikes.double(), weight.double(), kernel_map, backend="reference")
    moved = type(kernel_map)(**{k: v.to(device) if hasattr(v, "to") else v for k, v in vars(kernel_map).items()})
    out = spike_conv(spikes.to(device), weight.to(device), moved, backend="triton")
    scale = expected.abs().amax().item() if expected.numel() else 0.0
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=scale * 8 * torch.finfo(dtype).eps + 1e-5)


CHECKS = {
    f"parity {seed} {dtype}": partial(check_parity, seed, dtype)
    for seed in SEEDS
    for dtype in (torch.float32, torch.float16)
}


@pytest.fixture(scope="module")
def failures(interpreter: Interpreter) -> dict[str, str | None]:
    return interpreter.said(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_interpreter(failures: dict[str, str | None], name: str) -> None:
    assert failures[name] is None, failures[name]


def test_can_run_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.zeros(1, 4, 3), torch.zeros(27, 3, 5)
    assert "CUDA" in (backend.can_run(*given) or "")
    assert "float64" in (backend.can_run(given[0], given[1].double()) or "")
    monkeypatch.setattr(backend, "triton", None)
    assert "not installed" in (backend.can_run(*given) or "")


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kilobytes", "instruction"), DEVICES)
@pytest.mark.parametrize("element", ["fp32", "bf16"])
def test_the_kernel_builds(element: str, capability: int, kilobytes: int, instruction: str) -> None:
    types = dict.fromkeys(("p_spikes", "p_weight", "p_out"), f"*{element}") | {"p_map": "*i32"}
    constants = {"BLOCK_IN": backend.CHANNELS_IN, "BLOCK_OUT": backend.CHANNELS_OUT}
    assert_fits(build(backend.accumulate_kernel, capability, types, constants, backend.OPTIONS), kilobytes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_gpu(name: str) -> None:
    CHECKS[name](device="cuda")


if __name__ == "__main__":
    report({name: partial(check, device="cpu") for name, check in CHECKS.items()})
