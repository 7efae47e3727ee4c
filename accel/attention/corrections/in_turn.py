"""Several corrections of one call."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall
from accel.attention.plan import Correction


@dataclass(frozen=True)
class InTurn:
    """Apply several corrections, the first one first."""

    corrections: tuple[Correction, ...]

    def __call__(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"], lse: Float[Tensor, "b h s"]
    ) -> Float[Tensor, "b h s d"]:
        """Return the output after all of them."""
        for correction in self.corrections:
            out = correction(call, out, lse)
        return out
