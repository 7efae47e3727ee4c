"""Online estimates of how much attention each block receives."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 512  # query rows scored at once: bounds memory, no (s s) tensor ever exists


def block_mass(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    lse: Float[Tensor, "b h s"],
    scale: float,
    block_q: int,
    block_kv: int,
    q_order: Int[Tensor, " s"] | None = None,
    kv_order: Int[Tensor, " s"] | None = None,
) -> Float[Tensor, "b h nq nk"]:
    """Return the softmax mass of each block, summed over its rows: sum exp(q k scale - lse) (AdaSpa, section 3.2).

    With the true LSE every row of tokens sums to one; with one cached from an earlier step it nearly does.
    """
    if q_order is not None:
        q, lse = q[:, :, q_order], lse[:, :, q_order]
    if kv_order is not None:
        k = k[:, :, kv_order]
    length, kv_length = q.shape[2], k.shape[2]
    nq, nk = -(-length // block_q), -(-kv_length // block_kv)
    keys = k.float().transpose(-1, -2) * scale
    mass = torch.zeros(*q.shape[:2], nq, nk, device=q.device)
    step = max(1, ROWS // block_q) * block_q
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for start in range(0, length, step):
                rows = slice(start, min(start + step, length))
                weights = torch.baddbmm(
                    -lse[b, h, rows, None].float()[None], q[b, h, rows].float()[None], keys[b, h][None]
                )[0].exp_()
                columns = _sum_blocks(weights, block_kv, nk)
                blocks = _sum_blocks(columns.T, block_q, -(-columns.shape[0] // block_q)).T
                mass[b, h, start // block_q : start // block_q + blocks.shape[0]] = blocks
    return mass


def _sum_blocks(x: Float[Tensor, "r n"], block: int, count: int) -> Float[Tensor, "r m"]:
    whole = x.shape[1] // block
    sums = x[:, : whole * block].unflatten(1, (whole, block)).sum(-1)
    if whole == count:
        return sums
    return torch.cat([sums, x[:, whole * block :].sum(-1, keepdim=True)], 1)
