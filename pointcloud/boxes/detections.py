"""Boxes with what a network says of them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """Boxes found in one cloud, by falling score."""

    boxes: Float[Tensor, "n 7"]
    scores: Float[Tensor, " n"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Tensor) -> Detections:
        """Return those of some rows, given as indices or as a mask."""
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows])

    def cpu(self) -> Detections:
        """Return them in the memory of the CPU."""
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())
