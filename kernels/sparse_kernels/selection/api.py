"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_kernels._backends import choose
from sparse_kernels.selection import reference

LONGEST = 2**31 - 1  # entries of a row


def rank_entries(
    scores: Float[Tensor, "*b n"], *, backend: str | None = None
) -> tuple[Int[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """Return the place of each entry in its row by falling score, and the sum of the entries before it there.

    Ties go to the lower index. ValueError when `backend` cannot run the call.
    """
    return _module(backend, scores).rank_entries(scores)


def fill_budget(
    scores: Float[Tensor, "*b n"],
    areas: Int[Tensor, "*#b n"],
    budget: Int[Tensor, "*b 1"] | int,
    *,
    crossing: bool = False,
    backend: str | None = None,
) -> Bool[Tensor, "*b n"]:
    """Return the entries of each row, best score first, whose areas together come nearest to the row's budget.

    With `crossing` the entry that oversteps the budget is always kept, not only if at least half of it fits.
    Ties go to the lower index. Areas must not be negative. ValueError when `backend` cannot run the call.
    """
    return _module(backend, scores).fill_budget(scores, areas, budget, crossing)


def _module(backend: str | None, scores: Tensor) -> ModuleType:
    # A GPU sorts well without a kernel of ours, and only scores in float32 are frequent.
    small = scores.dtype == torch.float32 and scores.numel() and scores.shape[-1] <= LONGEST
    if backend is None and (scores.is_cuda or not small):
        return reference
    return choose("selection", "entries are ranked", backend, scores, level=3)
