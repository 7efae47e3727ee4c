"""Give each row the share of the softmax mass that its kept keys hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall

ROUNDING = 1e-5


@dataclass(frozen=True)
class DenominatorRatio:
    """Scale each row by the share of the softmax mass that its kept keys hold (Re-ttention, arXiv 2505.22918).

    `ratio` is exp(LSE of the kept keys - LSE of all keys) at some earlier step; `growth` is added to it, and the sum
    may pass 1, as published. Rows that keep all keys, as those of text do, are left alone.
    """

    ratio: Float[Tensor, "b h s"]
    growth: float = 0.0

    def __call__(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"], lse: Float[Tensor, "b h s"]
    ) -> Float[Tensor, "b h s d"]:
        """Return the output with its softmax denominators divided by the ratio, in the output's dtype."""
        share = torch.where(self.ratio > 1 - ROUNDING, 1.0, self.ratio + self.growth)
        return (out * share[..., None]).to(out.dtype)
