"""The C++ kernels: a sort for ranks, a search by halves for a budget."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_kernels import _extension


def can_run(scores: Tensor) -> str | None:
    """Return why the C++ kernels cannot run the call, or None; builds them at the first call."""
    if scores.dtype != torch.float32:
        return f"scores are {scores.dtype}, not float32"
    return _extension.reason_against(scores=scores)


def rank_entries(scores: Float[Tensor, "*b n"]) -> tuple[Int[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """Return places and sums."""
    ranks, before = torch.ops.sparse_kernels.rank_entries_cpu(_as_rows(scores))
    return ranks.view(scores.shape), before.view(scores.shape)


def fill_budget(
    scores: Float[Tensor, "*b n"], areas: Int[Tensor, "*#b n"], budget: Int[Tensor, "*b 1"] | int, crossing: bool
) -> Bool[Tensor, "*b n"]:
    """Return the kept entries."""
    budgets = torch.as_tensor(budget, dtype=torch.int64, device=scores.device).expand(*scores.shape[:-1], 1)
    areas = areas.long().expand(scores.shape)
    kept = torch.ops.sparse_kernels.fill_budget_cpu(
        _as_rows(scores), _as_rows(areas), budgets.reshape(-1).contiguous(), crossing
    )
    return kept.view(scores.shape)


def _as_rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()
