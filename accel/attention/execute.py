"""Run a plan, whatever its kind, and measure what it kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall
from accel.attention.plan import Computed, Dense, Plan, Sparse
from sparse_kernels import BlockMap, block_sparse_attention

RECALL_ROWS = 16


@dataclass(frozen=True)
class Attended:
    """What a plan gave: the output, the plan's kind (dense, refresh or sparse), its density, and the kept keys' LSE.

    A sparse plan's density stays on the device until somebody reads it.
    """

    out: Float[Tensor, "b h s d"]
    kind: str
    density: float | Float[Tensor, ""] = 1.0
    lse: Float[Tensor, "b h s"] | None = None


def attend(call: AttentionCall, plan: Plan) -> Attended:
    """Return the attention that a plan asks for; the one road of every call."""
    if isinstance(plan, Dense):
        return Attended(call.dense(), "dense")
    if isinstance(plan, Computed):
        return Attended(plan.out, "refresh")
    if not isinstance(plan, Sparse):
        raise TypeError(f"the method planned {plan!r}; accepted: Dense(), Computed(out) and Sparse(block_map)")
    out, lse = execute(call, plan)
    return Attended(out, "sparse", plan.share, lse)


def execute(call: AttentionCall, plan: Sparse) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    """Return the attention output, corrected if the plan says so, and the LSE over the kept keys."""
    out, lse = block_sparse_attention(
        call.q,
        call.k,
        call.v,
        plan.block_map,
        q_order=plan.q_order,
        kv_order=plan.kv_order,
        scale=call.scale,
        summaries=plan.summaries,
        return_lse="visited",
    )
    return (out if plan.correction is None else plan.correction(call, out, lse)), lse


def full_plan(q: Float[Tensor, "b h s d"], block: int = 64) -> Sparse:
    """Return the plan that visits all blocks of as many keys as queries."""
    count = -(-q.shape[2] // block)
    mask = torch.ones(1, 1, count, count, dtype=torch.bool, device=q.device)
    return Sparse(BlockMap.uniform(mask, block, block, q.shape[2], q.shape[2]))


def full_attention(call: AttentionCall, block: int = 64) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    """Return dense attention and its LSE, which SDPA keeps to itself, by a plan of all blocks.

    Who chose a backend gets its output; the LSE is ours all the same.
    """
    out, lse = execute(call, full_plan(call.q, block))
    return (call.dense() if call.chosen else out), lse


def sampled_recall(call: AttentionCall, lse: Float[Tensor, "b h s"]) -> Float[Tensor, ""]:
    """Return the mean softmax mass on the kept keys, from evenly spaced rows of every head (AdaSpa, section 3)."""
    rows = torch.linspace(0, call.q.shape[2] - 1, RECALL_ROWS, device=lse.device).long()
    shares = []
    for head in range(call.q.shape[1]):  # one by one: all keys in float32 are a gigabyte where memory is short
        scores = call.q[:, head, rows].float() @ call.k[:, head].float().transpose(-1, -2) * call.scale
        shares.append((lse[:, head, rows] - scores.logsumexp(-1)).exp())
    return torch.stack(shares).mean()
