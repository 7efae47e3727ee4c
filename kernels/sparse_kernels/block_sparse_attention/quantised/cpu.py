"""The C++ kernel with q k in int8 on AMX or AVX-512; weights and values are rounded to bf16, as its bf16 form does."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention import cpu
from sparse_kernels.block_sparse_attention.quantised.rounding import key_mean


def can_run(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, precision: str) -> str | None:
    """Return why the C++ kernel cannot run the call, or None."""
    if precision != "int8":
        return f"the CPU kernel has no {precision}, since no processor that it knows multiplies such numbers"
    reason = cpu.can_run(q, k, v, block_map)
    if reason is None and _extension.instruction_set(torch.int8) is None:
        return (
            "int8 needs AMX, or AVX-512 with VNNI and BF16, which this processor does not have; leave `precision` out"
        )
    return reason


def forward(
    q: Float[Tensor, "b h sq d"], k: Float[Tensor, "b hkv skv d"], v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap, q_order: Int[Tensor, "#b #h sq"] | None, kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float, precision: str, instructions: str | None = None,
) -> tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:  # fmt: skip
    """Return the output and the natural-log LSE; `instructions` names the real or the emulated kernel, for tests."""
    instructions = instructions or _extension.instruction_set(torch.int8) or ""
    return cpu.forward(q, k, v, block_map, q_order, kv_order, scale, instructions, key_mean(k).contiguous())
