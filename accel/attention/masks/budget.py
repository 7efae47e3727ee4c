"""Spending a budget of query-key pairs in order of preference."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def fill_budget(
    scores: Float[Tensor, "*b n"],
    areas: Int[Tensor, "*#b n"],
    budget: Int[Tensor, "*b 1"] | int,
    *,
    crossing: bool = False,
) -> Bool[Tensor, "*b n"]:
    """Return the entries of each row, best score first, whose areas together come nearest to the row's budget.

    With `crossing` the entry that oversteps the budget is always kept, not only if at least half of it fits.
    Ties go to the lower index.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    area = areas.expand(scores.shape).gather(-1, order).long()
    spent = area.cumsum(-1)
    fits = spent - area < budget if crossing else 2 * spent - area <= 2 * budget
    return torch.zeros_like(fits).scatter_(-1, order, fits)
