"""Attention masks that say only which rows are padding: the padding is left out, and the mask with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

MASKED = -9e3  # what is added to logits of padding, or less: bfloat16 has -9984 for the usual -1e4
Attend = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]
Rows = slice | Tensor


def valid_rows(mask: Tensor, batch: int, tokens: int) -> Bool[Tensor, "b s"] | None:
    """Return which rows of each sample are valid, or None if the mask says anything but what is padding.

    Accepted are masks over keys, and over pairs where both are valid, as booleans or as numbers that are added to
    logits. Rows of padding may look at any valid row: nobody looks at them. Waits for the device.
    """
    pairs = _as_pairs(mask, tokens)
    # One head of one sample before all others: all pairs of a long video are gigabytes to read.
    of_one = None if pairs is None else _valid(pairs[:1, 0])
    if pairs is None or of_one is None:
        return None
    first = pairs[:, 0]
    alike = [(pairs[:, head] == first).all() for head in range(1, pairs.shape[1])]  # one by one, for the same reason
    if alike and not bool(torch.stack(alike).all()):
        return None
    valid = of_one if len(first) == 1 else _valid(first)
    return None if valid is None else valid.expand(batch, -1)


def _as_pairs(mask: Tensor, tokens: int) -> Shaped[Tensor, "b h q k"] | None:
    """Return a mask with its four axes, of one or all samples, heads and queries; None if it has others."""
    if mask.ndim == 2:
        mask = mask[:, None, None]
    if mask.ndim == 3:
        mask = mask[:, None]
    fits = mask.ndim == 4 and mask.shape[-1] == tokens and mask.shape[-2] in (1, tokens)
    return mask if fits else None


def _valid(pairs: Shaped[Tensor, "b q k"]) -> Bool[Tensor, "b k"] | None:
    """Return which keys all valid rows of a head see, None if they differ in that, or look at padding."""
    kept = pairs if pairs.dtype == torch.bool else pairs == 0
    if kept is not pairs and not bool((kept | (pairs <= MASKED)).all()):
        return None
    valid = kept[:, 0]
    if kept.shape[1] == 1:
        return valid if bool(valid.any(1).all()) else None
    agrees = (kept == valid[:, None]).all(-1) | ~valid
    looked_at = (kept & ~valid[:, None]).any()
    return valid if bool(agrees.all() & ~looked_at & valid.any(1).all()) else None


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
