"""Attention masks that say only which rows are padding: the padding is left out, and the mask with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MASKED = -1e4  # what is added to logits of padding, or less
Attend = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]
Rows = slice | Tensor


def valid_rows(mask: Tensor, batch: int, tokens: int) -> Bool[Tensor, "b s"] | None:
    """Return which rows of each sample are valid, or None if the mask says anything but what is padding.

    Accepted are masks over keys, and over pairs where both are valid, as booleans or as numbers that are added to
    logits. Rows of padding may look at any valid row: nobody looks at them. Waits for the device.
    """
    kept = _as_pairs(mask, batch, tokens)
    if kept is None:
        return None
    valid = kept[:, 0]
    if kept.shape[1] == 1:
        return valid if bool(valid.any(1).all()) else None
    agrees = (kept == valid[:, None]).all(-1) | ~valid
    looked_at = (kept & ~valid[:, None]).any()
    return valid if bool(agrees.all() & ~looked_at & valid.any(1).all()) else None


def _as_pairs(mask: Tensor, batch: int, tokens: int) -> Bool[Tensor, "b q k"] | None:
    """Return which keys each query may see, for all queries at once where they agree; None if it is no such mask."""
    if mask.ndim == 2:
        mask = mask[:, None, None]
    if mask.ndim == 3:
        mask = mask[:, None]
    if mask.ndim != 4 or mask.shape[-1] != tokens or mask.shape[-2] not in (1, tokens):
        return None
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask <= MASKED)).all()):
            return None
        mask = mask == 0
    if mask.shape[1] > 1 and not bool((mask == mask[:, :1]).all()):  # heads that differ
        return None
    return mask[:, 0].expand(batch, -1, -1)


def rows_by_sample(valid: Bool[Tensor, "b s"]) -> list[Rows] | None:
    """Return the valid rows of each sample, once where all have the same, None where nothing is padding.

    Waits for the device, so that the calls of all layers need not.
    """
    if bool(valid.all()):
        return None
    alike = bool((valid == valid[:1]).all())
    return [_rows(each) for each in valid[: 1 if alike else len(valid)]]


def without_padding(
    attend: Attend, q: Float[Tensor, "b s h d"], k: Float[Tensor, "b s h2 d"], v: Float[Tensor, "b s h2 d"],
    samples: list[Rows],
) -> Float[Tensor, "b s h d"]:  # fmt: skip
    """Return what `attend` gives on the rows of `rows_by_sample`, zero in the others.

    `attend` is also told the sample, or None where all of the batch is computed at once.
    """
    out = q.new_zeros(q.shape)
    alike = len(samples) < len(q) or len(q) == 1
    for row, rows in enumerate(samples):
        own = slice(None) if alike else slice(row, row + 1)
        out[own, rows] = attend(q[own, rows], k[own, rows], v[own, rows], None if alike else row)
    return out


def _rows(valid: Bool[Tensor, " s"]) -> Rows:
    """Return the valid rows, as a slice where they are the first ones: that copies nothing."""
    count = int(valid.sum())
    return slice(count) if bool(valid[:count].all()) else valid.nonzero().flatten()
