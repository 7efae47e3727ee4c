"""Which calls stay dense."""

from __future__ import annotations

import math
from typing import Literal

from accel.attention.call import AttentionCall

Phase = Literal["dense", "last dense", "sparse"]


def dense_step_count(dense_steps: float, steps: int) -> int:
    """Return how many leading steps are dense: the share `dense_steps` of all steps, rounded up."""
    return math.ceil(dense_steps * steps - 1e-9)


def phase(call: AttentionCall, dense_steps: float, dense_layers: int) -> Phase:
    """Return where a call stands: in the dense warm-up (first steps, or layers), in its last step, or past it."""
    dense = dense_step_count(dense_steps, call.progress.steps)
    if call.layer < dense_layers or call.progress.step < dense - 1:
        return "dense"
    return "last dense" if call.progress.step == dense - 1 else "sparse"
