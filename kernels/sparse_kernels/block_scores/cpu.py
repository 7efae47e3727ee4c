"""The C++ kernel of block mass: float32 arithmetic on AVX-512, AVX2 or SSE; products of bf16 on AMX or AVX512_BF16."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._tensors import contiguous, rows
from sparse_kernels.block_scores import reference


def can_run(q: Tensor, k: Tensor) -> str | None:
    """Return why the C++ kernel cannot run the call, or None; builds it at the first call."""
    return _extension.reason_against(q=q)


def block_mass(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    lse: Float[Tensor, "b h sq"],
    q_offsets: Int[Tensor, "#b #h nq1"],
    kv_offsets: Int[Tensor, "#b #h nk1"],
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
    instructions: str = "",
) -> Float[Tensor, "b h nq nk"]:
    """Return exp(q k scale - lse) summed over blocks; `instructions` forces an instruction set, for tests."""
    if _multiplies_bfloat16(q):  # exact products, added up in float32
        instructions = instructions or _extension.instruction_set(torch.bfloat16) or ""
    return torch.ops.sparse_kernels.block_mass_cpu(
        rows(q),
        rows(k),
        lse.contiguous(),
        q_offsets.contiguous(),
        kv_offsets.contiguous(),
        contiguous(q_order),
        contiguous(kv_order),
        scale,
        instructions,
    )


def antidiagonal_scores(
    q: Float[Tensor, "b h sq d"], k: Float[Tensor, "b hkv skv d"], block: int, stride: int, scale: float, causal: bool
) -> Float[Tensor, "b h nq nk"]:
    """Return the estimate; nearly all its time is torch's matrix product, in bf16 where processor and input have that.

    The sums of antidiagonals are then rounded to bf16.
    """
    products = torch.bfloat16 if _multiplies_bfloat16(q) else torch.float32
    return reference.antidiagonal_scores(q, k, block, stride, scale, causal, products)


def _multiplies_bfloat16(q: Tensor) -> bool:
    return q.dtype == torch.bfloat16 and _extension.instruction_set(torch.bfloat16) in ("avx512_bf16", "amx")
