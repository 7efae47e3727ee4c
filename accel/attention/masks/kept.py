"""Tokens that are never cut off: text, and the first frame."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from accel.attention.call import Geometry


def keep_text(
    mask: Bool[Tensor, "*b nq nk"], geometry: Geometry, q_offsets: Int[Tensor, " nq1"], kv_offsets: Int[Tensor, " nk1"]
) -> Bool[Tensor, "*b nq nk"]:
    """Return the mask with every block row and column that holds text switched on (AdaSpa, section 4; all peers)."""
    first = 0 if geometry.text_position == "first" else geometry.video_tokens
    return _keep(mask, first, geometry.text_length, q_offsets, kv_offsets)


def keep_first_frame(
    mask: Bool[Tensor, "*b nq nk"], geometry: Geometry, q_offsets: Int[Tensor, " nq1"], kv_offsets: Int[Tensor, " nk1"]
) -> Bool[Tensor, "*b nq nk"]:
    """Return the mask with the first latent frame's block rows and columns on.

    All queries look at that frame: Sparse VideoGen (code for Wan) and Radial Attention keep its columns. Its rows are
    ours: the causal decoder draws a picture from it alone, in which every error shows.
    """
    first = geometry.text_length if geometry.text_position == "first" else 0
    return _keep(mask, first, geometry.frame_tokens, q_offsets, kv_offsets)


def _keep(
    mask: Bool[Tensor, "*b nq nk"],
    first: int,
    count: int,
    q_offsets: Int[Tensor, " nq1"],
    kv_offsets: Int[Tensor, " nk1"],
) -> Bool[Tensor, "*b nq nk"]:
    def holds(offsets: Tensor) -> Tensor:
        return ((offsets[:-1] < first + count) & (offsets[1:] > first)).to(mask.device)

    return mask | holds(q_offsets)[:, None] | holds(kv_offsets) if count else mask
