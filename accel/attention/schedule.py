"""Which calls stay dense."""

from __future__ import annotations

import math

from accel.attention.call import AttentionCall


def dense_step_count(dense_steps: float, steps: int) -> int:
    """Return how many leading steps are dense: the share `dense_steps` of all steps, rounded up."""
    return math.ceil(dense_steps * steps - 1e-9)


def is_dense(call: AttentionCall, dense_steps: float, dense_layers: int) -> bool:
    """Whether the call lies in the dense warm-up: the first share of the steps, or the first layers."""
    return call.layer < dense_layers or call.progress.step < dense_step_count(dense_steps, call.progress.steps)
