"""From which firing rate on the dense product is quicker: measured, once for each shape and device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparse_kernels._backends import load_backend

ROWS = 1024  # a few milliseconds; both ways work in tiles of fewer rows
NEIGHBORS = 0.4  # share of the slots that find a neighbour, as on the surfaces that a scanner sees
RATES = 0.05, 0.3
REPEATS = 5


@functools.cache
def break_even(slots: int, c_in: int, c_out: int, dtype: torch.dtype, device: str, threads: int) -> float:
    """Return the share of fired channels below which events are quicker than sparse_conv, 0 to 1.

    Both are timed on made-up rows of this shape, in bytes as networks send them; the time of events is taken to rise
    straight with the share. `device` is that of the spikes with its number, as "cuda:1"; `threads` is the number that
    torch uses, which the answer depends on.
    """
    # The user's default device may be another one.
    here: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "device": "cpu"}
    weight = torch.randn(slots, c_in, c_out, **here).to(device, dtype)
    kernel_map = torch.randint(ROWS, (slots, ROWS), dtype=torch.int32, **here)
    kernel_map[torch.rand(slots, ROWS, **here) > NEIGHBORS] = -1
    kernel_map, draws = kernel_map.to(device), torch.rand(ROWS, c_in, **here)
    spikes = [(draws < rate).to(device, torch.uint8) for rate in RATES]
    on_cuda = torch.device(device).type == "cuda"
    events = load_backend("spike_conv", "triton" if on_cuda else "cpu")
    dense = load_backend("sparse_conv", "reference" if on_cuda else "cpu")
    low, high = (_seconds(lambda x=x: events.accumulate(x[None], weight, kernel_map), device) for x in spikes)
    limit = _seconds(lambda: dense.convolve(spikes[0].to(dtype), weight, kernel_map), device)
    slope = max((high - low) / (RATES[1] - RATES[0]), 1e-12)
    return min(1.0, max(0.0, RATES[0] + (limit - low) / slope))


@torch.no_grad()
def _seconds(run: Callable[[], Tensor], device: str) -> float:
    """Return the fewest seconds of a call, after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
