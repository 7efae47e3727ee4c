"""The C++ kernel: float32 arithmetic on AVX-512, AVX2 or SSE, chosen at run time, bfloat16 products on request."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._tensors import rows
from sparse_kernels.kmeans.clusters import Clusters


def can_run(x: Tensor, centroids: Tensor) -> str | None:
    """Return why the C++ kernel cannot run the call, or None; builds it at the first call."""
    return _extension.reason_against(x=x)


def forward(
    x: Float[Tensor, "b h n d"],
    centroids: Float[Tensor, "b h k d"],
    iterations: int,
    tolerance: float,
    precision: str = "float32",
    instructions: str = "",
) -> Clusters:
    """Return the clusters of every head; `instructions` forces an instruction set, for tests."""
    if x.dtype == torch.float16:
        x = x.float()  # what the kernel widens slowly
    rounds = precision == "bfloat16" and x.dtype == torch.bfloat16
    narrow = _extension.instruction_set(torch.bfloat16) if rounds else None
    if narrow in ("avx512_bf16", "amx"):
        instructions = instructions or narrow
    return Clusters(
        *torch.ops.sparse_kernels.kmeans_cpu(
            rows(x),
            centroids.float().contiguous(),
            iterations,
            tolerance,
            instructions,
        )
    )
