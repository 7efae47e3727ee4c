"""What sparse attention is measured against: the best dense attention of the device, and a large matrix product."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.in_openvino import attention as openvino_attention
from benchmarks.in_openvino import has_openvino
from benchmarks.timing import median_seconds

SCORES_AT_MOST = 2**31  # bytes
REPEATS = 5
BACKENDS = {
    "default": [backend for backend in SDPBackend.__members__.values() if backend != SDPBackend.ERROR],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "math": [SDPBackend.MATH],
}


def backends_of(device: str) -> list[str]:
    """Return the names of the dense SDPAs of a device that never hold all scores: torch's own choice first."""
    return ["default", "cudnn", "flash"] if device.startswith("cuda") else ["default"]


def preferring(name: str) -> AbstractContextManager[Any]:
    """Return a context in which SDPA takes this kernel wherever it can, and any other where it cannot."""
    return sdpa_kernel(list(dict.fromkeys([*BACKENDS[name], *BACKENDS["default"]])), set_priority=name != "default")


def dense_seconds(q: Tensor, k: Tensor, v: Tensor, device: str) -> dict[str, float]:
    """Return the seconds of every dense attention by its name; one that cannot run here is passed over."""
    names, seconds = backends_of(device), {}
    if 4 * q.shape[1] * q.shape[2] * k.shape[2] < SCORES_AT_MOST:
        names.append("math")
    for name in names:
        with suppress(RuntimeError), sdpa_kernel(BACKENDS[name]):
            repeats = 3 if name == "math" else REPEATS
            seconds[name] = median_seconds(lambda: scaled_dot_product_attention(q, k, v), device, repeats)
    if has_openvino(device):
        seconds["openvino"] = median_seconds(openvino_attention(q, k, v), device, REPEATS)
    return seconds


def product_rate(dtype: torch.dtype, device: str) -> float:
    """Return the operations a second of a large matrix product now: the physical limit of attention.

    It is timed beside every row, for the clock of a machine changes within minutes.
    """
    size = 8192 if device.startswith("cuda") else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / median_seconds(lambda: a @ b, device, 5)
