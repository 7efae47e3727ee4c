"""Devices that the Triton kernels are not for: every backend names the reason before its first launch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import subprocess
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels import BlockMap, _triton  # noqa: E402
from sparse_kernels.block_scores import triton as block_scores  # noqa: E402
from sparse_kernels.block_scores import triton_pooled  # noqa: E402
from sparse_kernels.block_sparse_attention import triton as attention  # noqa: E402
from sparse_kernels.block_sparse_attention.quantised import triton as quantised  # noqa: E402
from sparse_kernels.centroids import triton as centroids  # noqa: E402
from sparse_kernels.kmeans import triton as kmeans  # noqa: E402
from sparse_kernels.points import triton as points  # noqa: E402
from sparse_kernels.spike_conv import triton as spike_conv  # noqa: E402


class OnCuda(Tensor):
    """A tensor that says that it lies on the second CUDA device."""

    is_cuda, device = True, torch.device("cuda", 1)


class Driver:
    """What stands for Triton's driver: it starts, and counts how often, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.started = error, 0

    @property
    def active(self) -> Driver:
        """The driver itself; Triton builds its own here."""
        if self.error is not None:
            raise self.error
        return self

    def get_current_target(self) -> None:
        """Count the start."""
        self.started += 1


def on_cuda(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype).as_subclass(OnCuda)


def reasons() -> dict[str, str | None]:
    """Return what each backend has against tensors on a CUDA device."""
    x, counts = on_cuda(1, 1, 64, 64), on_cuda(1, 1, 1, dtype=torch.int32)
    offsets = on_cuda(1, 1, 2, dtype=torch.int32)
    block_map = BlockMap(counts, on_cuda(1, 1, 1, 1, dtype=torch.int32), offsets, offsets)
    return {
        "attention": attention.can_run(x, x, x, block_map),
        "quantised attention": quantised.can_run(x, x, x, block_map, "int8"),
        "block scores": block_scores.can_run(x, x),
        "block means": None if triton_pooled.can_run(x) else "no",
        "k-means": kmeans.can_run(x, x),
        "centroids": centroids.can_run(x),
        "points": points.can_run(on_cuda(4, 3)),
        "spikes": spike_conv.can_run(on_cuda(1, 4, 3), on_cuda(27, 3, 5)),
    }


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Let there be CUDA devices of compute capability 8.0, and a driver of Triton that starts."""
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)  # there is none to go to
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(triton.runtime, "driver", driver)
    _triton.device_reason.cache_clear()
    yield driver
    _triton.device_reason.cache_clear()


def test_every_backend_asks_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "device_reason", lambda index: f"device {index} cannot")
    said = reasons()
    assert said.pop("block means") == "no" and set(said.values()) == {"device 1 cannot"}, said
    monkeypatch.setattr(_triton, "device_reason", lambda index: None)
    assert set(reasons().values()) == {None}


def test_triton_is_started_once_a_device(driver: Driver) -> None:
    assert set(reasons().values()) == {None} and set(reasons().values()) == {None}
    assert driver.started == 1
    assert _triton.device_reason(0) is None and driver.started == 2


@pytest.mark.parametrize("capability", [(7, 5), (6, 1)])
def test_older_devices_are_refused(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    wanted = f"the Triton kernels need compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    assert reasons()["attention"] == reasons()["spikes"] == wanted and driver.started == 0


def test_rocm_is_refused(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert reasons()["k-means"] == "the Triton kernels are for NVIDIA's GPUs" and driver.started == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("Failed to find C compiler.\nPlease specify one"), "Failed to find C compiler."),
        (subprocess.CalledProcessError(1, "gcc"), "Command 'gcc' returned non-zero exit status 1."),
        (AssertionError(), "AssertionError"),
    ],
    ids=["no compiler", "no Python.h", "nothing said"],
)
def test_a_triton_that_cannot_start_is_named(driver: Driver, error: Exception, line: str) -> None:
    driver.error = error
    wanted = "Triton cannot start, for which it needs a C compiler and Python's headers: "
    assert reasons()["block scores"] == wanted + line


def test_a_graph_does_not_break_where_triton_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.cache
    def device_reason(index: int) -> str | None:
        importlib.import_module("colorsys")  # which breaks a graph, as all that starts Triton would
        return "no compiler" if index else None

    monkeypatch.setattr(_triton, "device_reason", device_reason)
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: Tensor) -> Tensor:
        return x + 1 if _triton._settled_reason(0) is None and _triton._settled_reason(1) == "no compiler" else x

    assert torch.equal(compiled(torch.zeros(3)), torch.ones(3))
