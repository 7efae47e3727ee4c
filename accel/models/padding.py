"""Attention masks that say only which rows at the end are padding: the padding is left out, and the mask with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MASKED = -1e4  # what is added to logits of padding, or less
Attend = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]


def valid_lengths(mask: Tensor, batch: int, tokens: int) -> list[int] | None:
    """Return how many rows of each sample are valid, or None if the mask says anything but padding at the end.

    Accepted are masks over keys, and over pairs where both are valid, as booleans or as numbers that are added to
    logits. Rows of padding may look at anything: nobody looks at them. Waits for the device.
    """
    kept = _as_pairs(mask, batch, tokens)
    if kept is None:
        return None
    valid = kept[:, 0]
    lengths = valid.sum(-1)
    rows = torch.arange(tokens, device=mask.device)
    is_prefix = (valid == (rows < lengths[:, None])).all()
    agrees = (kept == valid[:, None]).all(-1) | (~valid if kept.shape[1] == tokens else kept.new_zeros(batch, 1))
    return lengths.tolist() if bool(is_prefix & agrees.all() & (lengths > 0).all()) else None


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
    if not bool((mask == mask[:, :1]).all()):  # heads that differ
        return None
    return mask[:, 0].expand(batch, -1, -1)


def without_padding(
    attend: Attend, q: Float[Tensor, "b s h d"], k: Float[Tensor, "b s h2 d"], v: Float[Tensor, "b s h2 d"],
    lengths: list[int],
) -> Float[Tensor, "b s h d"]:  # fmt: skip
    """Return what `attend` gives on the valid rows, zero in the others; sample by sample where lengths differ.

    `attend` is also told the sample, or None where all of the batch is computed at once.
    """
    out = q.new_zeros(q.shape)
    if len(set(lengths)) == 1:
        out[:, : lengths[0]] = attend(q[:, : lengths[0]], k[:, : lengths[0]], v[:, : lengths[0]], None)
        return out
    for row, length in enumerate(lengths):
        own = slice(row, row + 1), slice(length)
        out[own] = attend(q[own], k[own], v[own], row)
    return out
