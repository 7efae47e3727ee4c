"""What an event camera sends."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Int32, Int64
from torch import Tensor


@dataclass(frozen=True)
class Events:
    """Changes of brightness: time in microseconds, never falling, pixel, and whether it became brighter."""

    t: Int64[Tensor, " events"]
    x: Int32[Tensor, " events"]
    y: Int32[Tensor, " events"]
    polarity: Bool[Tensor, " events"]
    width: int
    height: int
