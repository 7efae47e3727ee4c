"""How often each class was taken for each, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Confusion:
    """Counts by true class (rows) and predicted class (columns); ValueError if they do not fit the names."""

    classes: tuple[str, ...]
    counts: Int[Tensor, "true predicted"]

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.classes),) * 2:
            raise ValueError(f"{len(self.classes)} classes need a square of counts, got {tuple(self.counts.shape)}")

    @classmethod
    def of(cls, classes: tuple[str, ...], true: Int[Tensor, " rows"], predicted: Int[Tensor, " rows"]) -> Confusion:
        """Count pairs of a true and a predicted class; rows whose true class is below 0 are left out."""
        number, known = len(classes), true >= 0
        true, predicted = true[known], predicted[known]
        counts = torch.bincount(true * number + predicted, minlength=number**2)
        return cls(classes, counts.view(number, number))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.classes, self.counts + other.counts)

    @property
    def accuracy(self) -> float:
        """The share of all rows that are right."""
        return float(self.counts.diag().sum() / self.counts.sum())

    @property
    def accuracies(self) -> Float[Tensor, " classes"]:
        """The share of each true class that is right; NaN where there is none."""
        return self.counts.diag() / self.counts.sum(1)

    @property
    def overlaps(self) -> Float[Tensor, " classes"]:
        """Intersection over union of each class; NaN where it is neither true nor predicted."""
        right = self.counts.diag()
        return right / (self.counts.sum(0) + self.counts.sum(1) - right)

    @property
    def mean_overlap(self) -> float:
        """The mean of the overlaps that there are, mIoU."""
        return float(self.overlaps.nanmean())
