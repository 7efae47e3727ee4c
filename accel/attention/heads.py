"""The heads of a layer where several devices share them: what counts over all heads must be the same on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class HeadShare:
    """The heads of one device, from `first` on; `gather` puts what every device has of its own heads together."""

    first: int
    gather: Callable[[Tensor], Tensor]

    def all(self, x: Shaped[Tensor, "b h *rest"]) -> Shaped[Tensor, "b h2 *rest"]:
        """Return the values of all heads, from those of this device's."""
        return self.gather(x)

    def own(self, x: Shaped[Tensor, "b h2 *rest"], heads: int) -> Shaped[Tensor, "b h *rest"]:
        """Return the values of this device's heads, as many as it has."""
        return x.narrow(1, self.first, heads)
