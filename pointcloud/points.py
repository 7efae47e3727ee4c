"""Points and what is known of each: what files hold and networks take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PointCloud:
    """Points in metres: x forward, y left, z up; ValueError on fields whose shapes do not fit.

    Every attribute has one row for each point. Well-known names: intensity, ring, time, color (points 3) in [0, 1],
    label, instance. `origin` has been taken off map coordinates, of which float32 would lose centimetres.
    """

    xyz: Float[Tensor, "points 3"]
    attributes: dict[str, Tensor] = field(default_factory=dict)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.xyz.dtype != torch.float32 or self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise ValueError(f"xyz must be float32 (points 3), got {self.xyz.dtype} {tuple(self.xyz.shape)}")
        for name, column in self.attributes.items():
            if column.ndim == 0 or len(column) != len(self):
                raise ValueError(f"{name} must have {len(self)} rows, one for each point, got {tuple(column.shape)}")

    def __len__(self) -> int:
        return len(self.xyz)

    def values(self, names: Sequence[str]) -> Float[Tensor, "points columns"]:
        """Return x y z and then the named attributes, in float32; ValueError if there is no such attribute."""
        missing = [name for name in names if name not in self.attributes]
        if missing:
            at_hand = ", ".join(self.attributes) or "none"
            raise ValueError(f"the points have no {', '.join(missing)}; attributes at hand: {at_hand}")
        for name in names:
            if self.attributes[name].ndim > 2:
                shape = tuple(self.attributes[name].shape)
                raise ValueError(f"{name} must have one number or one row of them for each point, got {shape}")
        columns = (self.attributes[name].to(torch.float32) for name in names)
        return torch.cat([self.xyz, *(column[:, None] if column.ndim == 1 else column for column in columns)], 1)
