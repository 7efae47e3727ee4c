"""Tensors as kernels take them."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """Return the tensor with contiguous rows, whatever lies between them: itself, or a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@overload
def contiguous(x: Tensor) -> Tensor: ...
@overload
def contiguous(x: Tensor | None) -> Tensor | None: ...
def contiguous(x: Tensor | None) -> Tensor | None:
    """Return an argument that may be left out as a contiguous tensor."""
    return None if x is None else x.contiguous()


@overload
def of_head(x: Tensor, batch: int, head: int) -> Tensor: ...
@overload
def of_head(x: Tensor | None, batch: int, head: int) -> Tensor | None: ...
def of_head(x: Tensor | None, batch: int, head: int) -> Tensor | None:
    """Return what belongs to one head of a tensor whose first sizes may be 1, which shares it; None stays None."""
    return None if x is None else x[min(batch, x.shape[0] - 1), min(head, x.shape[1] - 1)]


def same_fields(one: Any, other: Any) -> bool:
    """Return whether two objects of one class hold the same numbers in the same places; reads from the device."""
    return type(one) is type(other) and all(map(_same, vars(one).values(), vars(other).values()))


def _same(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    # Where devices or types differ torch raises, and so it does on meta, where there are no numbers.
    comparable = one.device == other.device and one.dtype == other.dtype and not one.is_meta
    return one is other or (comparable and torch.equal(one, other))
