"""Run a plan, and measure what it kept."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attention.call import AttentionCall
from accel.attention.plan import Sparse
from sparse_kernels import BlockMap, block_sparse_attention, outruns_sdpa

RECALL_ROWS = 16


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
        return_lse=True,
    )
    return (out if plan.correction is None else plan.correction(call, out, lse)), lse


def full_plan(call: AttentionCall, block: int = 64) -> Sparse:
    """Return the plan that visits all blocks."""
    count = -(-call.q.shape[2] // block)
    mask = torch.ones(1, 1, count, count, dtype=torch.bool, device=call.q.device)
    return Sparse(BlockMap.uniform(mask, block, block, call.q.shape[2], call.k.shape[2]))


def full_attention(call: AttentionCall, block: int = 64) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    """Return dense attention and its LSE, which SDPA keeps to itself, by a plan of all blocks."""
    return execute(call, full_plan(call, block))


def dense_attention(call: AttentionCall) -> Float[Tensor, "b h s d"]:
    """Return attention over all keys by the faster of our kernel and SDPA."""
    if outruns_sdpa(call.q):
        return full_attention(call)[0]
    return scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)


def sampled_recall(call: AttentionCall, lse: Float[Tensor, "b h s"]) -> Float[Tensor, ""]:
    """Return the mean softmax mass on the kept keys, from evenly spaced rows of every head (AdaSpa, section 3)."""
    rows = torch.linspace(0, call.q.shape[2] - 1, RECALL_ROWS, device=lse.device).long()
    scores = call.q[:, :, rows].float() @ call.k.float().transpose(-1, -2) * call.scale
    return (lse[:, :, rows] - scores.logsumexp(-1)).exp().mean()
