"""Time on the device that does the work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def seconds_each(runs: Iterable[Callable[[], Any]], device: str) -> list[float]:
    """Return the seconds of each run, one after another; on CUDA by events, so that nothing waits in between."""
    if not device.startswith("cuda"):
        times = []
        for run in runs:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return times
    marks = []
    torch.cuda.synchronize()
    for run in runs:
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        run()
        pair[1].record()
        marks.append(pair)
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in marks]


def median_seconds(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median seconds of `repeats` runs after one to warm up."""
    return statistics.median(seconds_each([run] * (repeats + 1), device)[1:])
