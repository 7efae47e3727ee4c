"""The definition: torch only, any device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def can_run(scores: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


def rank_entries(scores: Float[Tensor, "*b n"]) -> tuple[Int[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """Return places and sums."""
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], dtype=torch.int32, device=scores.device).expand(scores.shape)
    ranks = torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(-1, order, places)
    exact = scores.is_cuda and torch.are_deterministic_algorithms_enabled()
    sums = sums_in_integers(ranked) if exact else ranked.cumsum(-1)
    return ranks, torch.empty_like(scores).scatter_(-1, order, sums - ranked)


def sums_in_integers(rows: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """Return running sums of terms rounded to 2^-40 of a row's total: torch has no others on CUDA that repeat bits."""
    unit = rows.abs().sum(-1, keepdim=True).double().clamp(min=1e-300) * 2.0**-40
    return ((rows / unit).round().long().cumsum(-1) * unit).to(rows.dtype)


def fill_budget(
    scores: Float[Tensor, "*b n"], areas: Int[Tensor, "*#b n"], budget: Int[Tensor, "*b 1"] | int, crossing: bool
) -> Bool[Tensor, "*b n"]:
    """Return the kept entries."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    area = areas.expand(scores.shape).gather(-1, order).long()
    spent = area.cumsum(-1)
    left = budget - (spent - area)
    fits = left > 0 if crossing else area - left <= left
    return torch.zeros_like(fits).scatter_(-1, order, fits)
