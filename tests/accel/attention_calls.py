"""Attention calls on a small grid, and dense attention in float64 to hold results against."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry, Progress
from accel.attention.plan import Sparse

GRID = Geometry(3, 4, 8)


def make_call(
    step: int = 0,
    steps: int = 20,
    geometry: Geometry = GRID,
    seed: int = 0,
    batch: int = 1,
    drift: float = 0.0,
    branch: str = "cond",
) -> AttentionCall:
    """Return a call of 2 heads of 16 channels; `drift` is how far its tensors move away from the seed's a step."""
    generator = torch.Generator().manual_seed(seed)
    start, motion = torch.randn(2, 3, batch, 2, geometry.tokens, 16, generator=generator).unbind()
    q, k, v = (start + drift * step * motion).unbind()
    return AttentionCall(q * 2, k * 2, v, 0, 2, geometry, Progress(step, steps, branch))


def row(call: AttentionCall, index: int) -> AttentionCall:
    """Return the call of one sample of the batch."""
    q, k, v = (x[index : index + 1] for x in (call.q, call.k, call.v))
    return AttentionCall(q, k, v, call.layer, call.layers, call.geometry, call.progress)


def exponentials(call: AttentionCall) -> Tensor:
    """Return exp(q k scale) in float64, (b h s s)."""
    return (call.q.double() @ call.k.double().transpose(-1, -2) * call.scale).exp()


def dense(call: AttentionCall) -> Tensor:
    """Return softmax attention in float64."""
    weights = exponentials(call)
    return weights / weights.sum(-1, keepdim=True) @ call.v.double()


def visited(plan: Sparse) -> Tensor:
    """Return the plan's mask of query-key pairs in the callers' order, (b|1 h|1 s s)."""
    mask = plan.block_map.to_mask()
    for order, dim in ((plan.q_order, -2), (plan.kv_order, -1)):
        if order is not None:
            place = order.argsort(-1)
            place = place[..., None] if dim == -2 else place[..., None, :]
            shape = [max(a, b) for a, b in zip(mask.shape[:2], order.shape[:2], strict=True)]
            mask = mask.expand(*shape, -1, -1).gather(dim, place.expand(*shape, *mask.shape[2:]))
    return mask
