"""Attention calls on a small grid, and dense attention in float64 to hold results against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attention.call import AttentionCall, Geometry, Progress
from accel.attention.plan import Sparse
from accel.workbench.drawing import pairs

GRID = Geometry(3, 4, 8)


def as_call(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, progress: Progress, layer: int = 0, layers: int = 2
) -> AttentionCall:
    """Return the call of these tensors (b h s d), with the usual scale and SDPA for dense attention."""
    scale = q.shape[-1] ** -0.5
    return AttentionCall(
        q, k, v, layer, layers, geometry, progress, scale, lambda: scaled_dot_product_attention(q, k, v, scale=scale)
    )


def rows_around(geometry: Geometry) -> str:
    """Return a test's name for what stands before and after the video."""
    return f"{geometry.before}-{geometry.after}"


def make_call(
    step: int = 0,
    steps: int = 20,
    geometry: Geometry = GRID,
    seed: int = 0,
    batch: int = 1,
    heads: int = 2,
    drift: float = 0.0,
    branch: str = "cond",
    centres: int = 0,
) -> AttentionCall:
    """Return a call of 16 channels; `drift` is how far its tensors move away from the seed's in each step.

    With `centres` the tokens are noise around that many, so that they form clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, heads, geometry.tokens)
    if centres:
        places = torch.randint(0, centres, (*shape, 1), generator=generator)
        middles = torch.randn(*shape[:3], centres, 16, generator=generator)
        noise = torch.randn(*shape, 16, generator=generator)
        q, k, v = (middles.gather(3, places.expand(-1, -1, -1, -1, 16)) * 1.5 + 0.7 * noise).unbind()
        return as_call(q, k, v, geometry, Progress(step, steps, branch))
    start, motion = torch.randn(2, *shape, 16, generator=generator).unbind()
    q, k, v = (start + drift * step * motion).unbind()
    return as_call(q * 2, k * 2, v, geometry, Progress(step, steps, branch))


def row(call: AttentionCall, index: int) -> AttentionCall:
    """Return the call of one sample of the batch."""
    q, k, v = (x[index : index + 1] for x in (call.q, call.k, call.v))
    return as_call(q, k, v, call.geometry, call.progress, call.layer, call.layers)


def in_dtype(call: AttentionCall, dtype: torch.dtype) -> AttentionCall:
    """Return the call with its tensors rounded."""
    q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
    return as_call(q, k, v, call.geometry, call.progress, call.layer, call.layers)


def exponentials(call: AttentionCall) -> Tensor:
    """Return exp(q k scale) in float64, (b h s s)."""
    return (call.q.double() @ call.k.double().transpose(-1, -2) * call.scale).exp()


def dense(call: AttentionCall, mask: Tensor | None = None) -> Tensor:
    """Return softmax attention over the masked pairs (default: all) in float64."""
    scores = call.q.double() @ call.k.double().transpose(-1, -2) * call.scale
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ call.v.double()


def visited(plan: Sparse) -> Tensor:
    """Return the plan's mask of query-key pairs in the callers' order, (b|1 h|1 s s)."""
    return pairs(plan)
