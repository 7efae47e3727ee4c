"""Time on the device that does the work, read only when somebody asks."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Stopwatch:
    """Starts when made and stops at `stop`; on CUDA it records events, so that nothing waits for the device."""

    def __init__(self, x: Tensor):
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if x.is_cuda else None
        self._start = time.perf_counter()
        self._stop = self._start
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        """Mark the end."""
        self._stop = time.perf_counter()
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """Return the time between start and stop; on CUDA this waits for the device."""
        if self._events:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1]) / 1000
        return self._stop - self._start
