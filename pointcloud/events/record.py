"""What an event camera sends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

TYPES = {"t": torch.int64, "x": torch.int32, "y": torch.int32, "polarity": torch.bool}


@dataclass(frozen=True)
class Events:
    """Changes of brightness, one a row: time in microseconds, never falling, pixel, and whether it became brighter.

    x grows to the right from 0 to `width`, y downwards from 0 to `height`, both in pixels and the ends left out.
    ValueError on columns of other types or unequal lengths, on times that fall, and on pixels off the sensor.
    """

    t: Int64[Tensor, " events"]
    x: Int32[Tensor, " events"]
    y: Int32[Tensor, " events"]
    polarity: Bool[Tensor, " events"]
    width: int
    height: int

    def __post_init__(self) -> None:
        for name, dtype in TYPES.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != (len(self.t),):
                found = f"{column.dtype} {tuple(column.shape)}"
                raise ValueError(
                    f"{name} must be {dtype} with one number for each of {len(self.t)} events, got {found}"
                )
        if self.width < 1 or self.height < 1:
            raise ValueError(f"the sensor must have at least 1 x 1 pixels, got {self.width} x {self.height}")
        for name, column, size in (("x", self.x, self.width), ("y", self.y, self.height)):
            off = int(((column < 0) | (column >= size)).sum())
            if off:
                raise ValueError(
                    f"{off} of {len(self)} events are off the sensor of {self.width} x {self.height} pixels: {name} "
                    f"from {int(column.min())} to {int(column.max())}; give its size, or leave these events out"
                )
        falls = int((self.t[1:] < self.t[:-1]).sum())
        if falls:
            raise ValueError(f"time runs backwards at {falls} of {len(self)} events; sort them by time first")

    def __len__(self) -> int:
        return len(self.t)

    @property
    def duration(self) -> int:
        """The microseconds from the first event to the last; 0 without events."""
        return int(self.t[-1] - self.t[0]) if len(self) else 0

    def __getitem__(self, rows: slice) -> Events:
        """Return a run of events by their numbers, as `events[100:200]`; ValueError on a step backwards."""
        if rows.step is not None and rows.step < 1:
            raise ValueError(
                f"the step of a slice of events must be 1 or more, got {rows.step}: time would run backwards"
            )
        return Events(self.t[rows], self.x[rows], self.y[rows], self.polarity[rows], self.width, self.height)

    def between(self, start: int, end: int) -> Events:
        """Return the events from `start` on and before `end`, in microseconds."""
        first, last = torch.searchsorted(self.t, torch.tensor([start, end], device=self.t.device)).tolist()
        return self[first : max(first, last)]

    def windows(
        self, *, duration: int | None = None, count: int | None = None, stride: int | None = None
    ) -> Iterator[Events]:
        """Yield windows of `duration` microseconds or of `count` events, each `stride` of these after the last.

        The stride is the length by default; less makes them overlap. Windows that the recording ends in are left out,
        if they are not the first, and so are those without events. ValueError unless one length is given, from 1 on.
        """
        length = duration if count is None else count
        if length is None or (duration is not None and count is not None):
            raise ValueError("give the length of windows as duration (in microseconds) or as count (of events)")
        stride = length if stride is None else stride
        if length < 1 or stride < 1:
            raise ValueError(f"length and stride of windows must be 1 or more, got {length} and {stride}")
        return self._by_count(length, stride) if duration is None else self._by_time(length, stride)

    def _by_count(self, count: int, stride: int) -> Iterator[Events]:
        for start in range(0, max(1, len(self) - count + 1) if len(self) else 0, stride):
            yield self[start : start + count]

    def _by_time(self, duration: int, stride: int) -> Iterator[Events]:
        if not len(self):
            return
        start, end = int(self.t[0]), int(self.t[-1])
        last = max(start, end - duration + 1)
        while start <= last:
            window = self.between(start, start + duration)
            if len(window):
                yield window
                start += stride
            else:  # over a pause at once, however long it is
                following = int(self.between(start, end + 1).t[0])
                start += max(1, -(-(following - start - duration + 1) // stride)) * stride


def sorted_events(
    t: Int64[Tensor, " events"],
    x: Int32[Tensor, " events"],
    y: Int32[Tensor, " events"],
    polarity: Bool[Tensor, " events"],
    width: int,
    height: int,
) -> Events:
    """Return events in the order of their times, those of the same time as they stood; ValueError as `Events`."""
    order = t.argsort(stable=True)
    return Events(t[order], x[order], y[order], polarity[order], width, height)
