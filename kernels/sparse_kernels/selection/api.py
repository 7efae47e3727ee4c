"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_kernels._backends import choose
from sparse_kernels._checks import described
from sparse_kernels.selection import reference

LONGEST = 2**31 - 1  # entries of a row


@torch.no_grad()
def rank_entries(
    scores: Float[Tensor, "*b n"], *, backend: str | None = None
) -> tuple[Int[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """Return the place of each entry in its row by falling score, and the sum of the entries before it there.

    Ties go to the lower index. Neither has gradients. ValueError on scores that are no rows of numbers, and when
    `backend` cannot run the call.
    """
    _check_scores(scores)
    return _module(backend, scores).rank_entries(scores)


@torch.no_grad()
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
    Ties go to the lower index. Areas must not be negative. There are no gradients. ValueError on what does not fit the
    scores, and when `backend` cannot run the call.
    """
    _check_scores(scores)
    _check_fits("areas", areas, scores, scores.shape)
    # A GPU would have to be waited for, and a graph must not depend on values.
    readable = areas.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and areas.numel() and areas.min() < 0:
        raise ValueError(f"areas must not be negative, got {int(areas.min())}")
    if not isinstance(budget, int):
        _check_fits("budget", budget, scores, (*scores.shape[:-1], 1))
    # Below nothing there is nothing to keep, and differences from far below are beyond 64 bits.
    budget = max(budget, -1) if isinstance(budget, int) else budget.long().clamp(min=-1)
    return _module(backend, scores).fill_budget(scores, areas, budget, crossing)


def _check_scores(scores: object) -> None:
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or not scores.ndim:
        raise ValueError(f"scores must be rows of floating-point numbers, got {described(scores)}")


def _check_fits(name: str, x: Any, scores: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what is no tensor of whole numbers beside the scores, or does not expand to a shape."""
    whole = isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex()) and x.device == scores.device
    pairs = zip(reversed(x.shape), reversed(shape), strict=False) if isinstance(x, Tensor) else ()
    if not whole or x.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in pairs):
        raise ValueError(
            f"{name} must be whole numbers that expand to {tuple(shape)} on {scores.device}, got {described(x)}"
        )


def _module(backend: str | None, scores: Tensor) -> ModuleType:
    # A GPU sorts well without a kernel of ours, and only scores in float32 are frequent.
    small = scores.dtype == torch.float32 and scores.numel() and scores.shape[-1] <= LONGEST
    if backend is None and (scores.is_cuda or not small):
        return reference
    return choose("selection", "entries are ranked", backend, scores, level=5)
