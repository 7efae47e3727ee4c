"""`torch.autocast` around a pipeline: torch's attention obeys it, the products by which we plan do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Stock = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Autocast:
    """What the user has on for one kind of device."""

    kind: str
    dtype: torch.dtype

    def rounded(self, x: Tensor) -> Tensor:
        """Return the tensor in the type in which torch's attention would take it; float64 stays, as there."""
        return x if x.dtype == torch.float64 else x.to(self.dtype)

    def off(self) -> torch.autocast:
        """Return a context in which nothing is rounded."""
        return torch.autocast(self.kind, enabled=False)

    def around(self, stock: Stock) -> Stock:
        """Return the pipeline's own attention under autocast, for calls from where it is off."""

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            with torch.autocast(self.kind, self.dtype):
                return stock(q, k, v, mask)

        return attend


def autocast_of(x: Tensor) -> Autocast | None:
    """Return what is on for the tensor's device, None where autocast is off or unknown there."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return Autocast(kind, torch.get_autocast_dtype(kind))
