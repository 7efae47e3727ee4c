"""The C++ kernel: float32 arithmetic on AVX-512, AVX2 or SSE, chosen at run time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels.kmeans.clusters import Clusters


def can_run(x: Tensor, centroids: Tensor) -> str | None:
    """Return why the C++ kernel cannot run the call, or None; builds it at the first call."""
    if x.device.type != "cpu":
        return f"x is on {x.device}, not on the CPU"
    return _extension.load()


def forward(
    x: Float[Tensor, "b h n d"],
    centroids: Float[Tensor, "b h k d"],
    iterations: int,
    tolerance: float,
    instructions: str = "",
) -> Clusters:
    """Return the clusters of every head; `instructions` forces an instruction set, for tests."""
    x = x.float()  # widened once: every iteration reads all rows twice
    return Clusters(
        *torch.ops.sparse_kernels.kmeans_cpu(
            x if x.stride(-1) == 1 else x.contiguous(),
            centroids.float().contiguous(),
            iterations,
            tolerance,
            instructions,
        )
    )
