"""Tokens that are never cut off: all that are no video, and the first frame."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from accel.attention.call import Geometry


def keep_rest(
    mask: Bool[Tensor, "*b nq nk"], geometry: Geometry, q_offsets: Int[Tensor, " nq1"], kv_offsets: Int[Tensor, " nk1"]
) -> Bool[Tensor, "*b nq nk"]:
    """Return the mask with all block rows and columns on that hold text or anything else that is no video.

    Source: AdaSpa, section 4; all peers.
    """
    if not geometry.has_rest:
        return mask
    return _keep(mask, geometry.kept(mask.device), q_offsets, kv_offsets)


def rest_blocks(geometry: Geometry, offsets: Int[Tensor, " n1"]) -> Bool[Tensor, " n"]:
    """Return which blocks hold text or anything else that is no video."""
    return _holding(geometry.kept(offsets.device), offsets)


def keep_first_frame(
    mask: Bool[Tensor, "*b nq nk"], geometry: Geometry, q_offsets: Int[Tensor, " nq1"], kv_offsets: Int[Tensor, " nk1"]
) -> Bool[Tensor, "*b nq nk"]:
    """Return the mask with the first latent frame's block rows and columns on.

    All queries look at that frame: Sparse VideoGen (code for Wan) and Radial Attention keep its columns. Its rows are
    ours: the causal decoder draws a picture from it alone, in which every error shows.
    """
    rows = ~geometry.kept(mask.device)
    rows[geometry.video.start + geometry.frame_tokens :] = False
    return _keep(mask, rows, q_offsets, kv_offsets)


def _keep(
    mask: Bool[Tensor, "*b nq nk"],
    rows: Bool[Tensor, " s"],
    q_offsets: Int[Tensor, " nq1"],
    kv_offsets: Int[Tensor, " nk1"],
) -> Bool[Tensor, "*b nq nk"]:
    return mask | _holding(rows, q_offsets)[:, None] | _holding(rows, kv_offsets)


def _holding(rows: Bool[Tensor, " s"], offsets: Int[Tensor, " n1"]) -> Bool[Tensor, " n"]:
    before = pad(rows.cumsum(0), (1, 0))
    return before[offsets.to(rows.device).long()].diff() > 0
