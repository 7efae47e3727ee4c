"""The C++ kernels: float32 arithmetic on AVX-512, AVX2 or SSE, chosen at run time, AMX for errors on request."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._tensors import rows
from sparse_kernels.kmeans import Clusters


def can_run(x: Tensor) -> str | None:
    """Return why the C++ kernels cannot run the call, or None; builds them at the first call."""
    return _extension.reason_against(tokens=x)


def centroid_log_error(
    queries: Float[Tensor, "b h nq d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    keys: Clusters,
    values: Float[Tensor, "b h nk d"],
    scale: float,
    precision: str = "float32",
    instructions: str = "",
) -> Float[Tensor, "b h nq nk"]:
    """Return the logarithms of the errors; `instructions` forces an instruction set, for tests."""
    if precision == "bfloat16" and k.dtype == torch.bfloat16 and _extension.instruction_set(k.dtype) == "amx":
        instructions = instructions or "amx"
    fixed = (x.contiguous() for x in (keys.order, keys.offsets, keys.centroids, values))
    return torch.ops.sparse_kernels.centroid_log_error_cpu(
        queries.contiguous(), rows(k), rows(v), *fixed, scale, instructions
    )


def merge_centroids(
    q: Float[Tensor, "b h n d"],
    out: Float[Tensor, "b h n d"],
    lse: Float[Tensor, "b h n"],
    queries: Clusters,
    weights: Float[Tensor, "b h nq nk"],
    centroids: Float[Tensor, "b h nk d"],
    values: Float[Tensor, "b h nk d"],
    scale: float,
    instructions: str = "",
) -> Float[Tensor, "b h n d"]:
    """Return the merged output; `instructions` forces an instruction set, for tests."""
    fixed = (x.contiguous() for x in (lse, queries.order, queries.offsets, weights, centroids, values))
    return torch.ops.sparse_kernels.merge_centroids_cpu(rows(q), rows(out), *fixed, scale, instructions)
