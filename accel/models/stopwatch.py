"""Time on the device that does the work, read only when somebody asks."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor


class Stopwatch:
    """Starts when made and takes a time at each `lap`; on CUDA these are events, so that nothing waits for it."""

    def __init__(self, x: Tensor):
        self._device = x.device if x.is_cuda else None
        self._marks: list[Any] = []
        self.lap()

    def lap(self) -> None:
        """Take a time."""
        if self._device is not None:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record(torch.cuda.current_stream(self._device))
        else:
            mark = time.perf_counter()
        self._marks.append(mark)

    def seconds(self, lap: int = -1) -> float:
        """Return the time from the start to a lap, by default the last one; on CUDA this waits for the device."""
        first, last = self._marks[0], self._marks[1:][lap]
        if self._device is not None:
            last.synchronize()
            return first.elapsed_time(last) / 1000
        return last - first
