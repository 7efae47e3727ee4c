"""From block scores to the blocks that are kept: every rule of the field in one function."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_kernels import rank_entries


def select_blocks(
    scores: Float[Tensor, "*b n"],
    *,
    top_k: Int[Tensor, "*#b 1"] | int | None = None,
    top_p: Float[Tensor, "*#b 1"] | float | None = None,
    threshold: float | None = None,
    at_least: int = 1,
) -> Bool[Tensor, "*b n"]:
    """Return the kept entries of each row, the union of the rules given.

    `top_k` keeps that many of the largest. `top_p` keeps the largest until their sum reaches that share of the
    row's sum; the entry that crosses it is kept (the convention of SVG2, XAttention, Jenga, BSA and NABLA;
    SpargeAttn drops it). `threshold` keeps scores at or above it. The `at_least` largest are always kept. Ties go
    to the lower index. ValueError when no rule is given.
    """
    if top_k is None and top_p is None and threshold is None:
        raise ValueError("select_blocks needs at least one of top_k, top_p, threshold")
    rank, before = rank_entries(scores)
    keep = rank < at_least
    if top_k is not None:
        keep |= rank < top_k
    if top_p is not None:
        # All is all: a rounded sum may reach the whole before the last entries.
        keep |= (before < top_p * scores.sum(-1, keepdim=True)) | (top_p >= 1)
    if threshold is not None:
        keep |= scores >= threshold
    return keep
