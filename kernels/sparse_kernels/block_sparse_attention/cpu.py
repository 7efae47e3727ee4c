"""The C++ kernel: AMX for bf16, otherwise float32 arithmetic on AVX-512, AVX2 or SSE, chosen at run time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._checks import has_tangent
from sparse_kernels._tensors import contiguous, rows
from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention.summaries import Summaries

MAX_HEAD_DIM = 256
AMX_TOKENS = 2048  # with fewer, what is packed and planned costs more than the product saves


def can_run(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> str | None:
    """Return why the C++ kernel cannot run the call, or None; builds it at the first call."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "the C++ kernel has no backward pass; call it under torch.no_grad() or use backend='reference'"
    if has_tangent(q, k, v):
        return "the C++ kernel has no forward-mode derivative; use backend='reference'"
    if q.shape[3] > MAX_HEAD_DIM:
        return f"head_dim is {q.shape[3]}, at most {MAX_HEAD_DIM} is supported"
    return _extension.reason_against(q=q)


def outruns_sdpa(q: Float[Tensor, "b h s d"]) -> bool:
    """Return whether this kernel computes attention over all keys faster than SDPA, where that was measured: in bf16.

    On AVX512_BF16 it is 1.9 to 2.4 times as fast, since SDPA multiplies there no faster than in float32; on AMX 1.15 to
    1.7 times from 4,096 tokens on, and slower with few. Elsewhere little is gained.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[3] > MAX_HEAD_DIM:
        return False
    instructions = _extension.instruction_set(torch.bfloat16)
    return instructions == "avx512_bf16" or (instructions == "amx" and q.shape[2] >= AMX_TOKENS)


def forward(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap,
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
    instructions: str = "",
    key_mean: Float[Tensor, "b hkv d"] | None = None,
    summaries: Summaries | None = None,
    lse_of_visited: bool = False,
) -> tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:
    """Return the output and the natural-log LSE; `instructions` forces an instruction set, for tests and for int8.

    `key_mean` (float32) is what the int8 kernel takes off the keys before it rounds them.
    """
    means = (None, None, None) if summaries is None else summaries.of_heads()
    return torch.ops.sparse_kernels.block_sparse_attention_cpu(
        rows(q),
        rows(k),
        rows(v),
        block_map.counts.contiguous(),
        block_map.indices.contiguous(),
        block_map.q_offsets.contiguous(),
        block_map.kv_offsets.contiguous(),
        contiguous(q_order),
        contiguous(kv_order),
        scale,
        instructions,
        key_mean,
        *means,
        lse_of_visited,
    )
