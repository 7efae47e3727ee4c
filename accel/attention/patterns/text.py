"""Text tokens in the attention sequence are never cut off."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from accel.attention.call import Geometry


def keep_text(
    mask: Bool[Tensor, "*b nq nk"], geometry: Geometry, q_offsets: Int[Tensor, " nq1"], kv_offsets: Int[Tensor, " nk1"]
) -> Bool[Tensor, "*b nq nk"]:
    """Return the mask with every block row and column that holds text switched on (AdaSpa, section 4; all peers)."""
    if geometry.text_length == 0:
        return mask
    first = 0 if geometry.text_position == "first" else geometry.video_tokens
    last = first + geometry.text_length

    def holds_text(offsets: Tensor) -> Tensor:
        return ((offsets[:-1] < last) & (offsets[1:] > first)).to(mask.device)

    return mask | holds_text(q_offsets)[:, None] | holds_text(kv_offsets)
