"""What the C++ operators return for tensors without data: shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("sparse_kernels::rank_entries_cpu")
def _ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores, dtype=torch.int32), torch.empty_like(scores)


@torch.library.register_fake("sparse_kernels::fill_budget_cpu")
def _kept(scores: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
