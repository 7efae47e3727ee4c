"""What a stretch of blocks added when it was computed, and what it would add now."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class History:
    """What was added (output minus input) at the latest computed steps, the newest last."""

    steps: list[int] = field(default_factory=list)
    added: list[Tensor] = field(default_factory=list)

    def keep(self, step: int, added: Tensor, count: int) -> None:
        """Note what a computed step added; only `count` of them stay."""
        if self.steps and self.steps[-1] == step:  # a solver of second order computes a step twice
            self.steps.pop()
            self.added.pop()
        self.steps, self.added = [*self.steps, step][-count:], [*self.added, added][-count:]

    def clear(self) -> None:
        """Forget all of them."""
        self.steps, self.added = [], []

    def forecast(self, step: int, order: int = 0) -> Tensor:
        """Return what is added at a later step: as much as last (order 0), or on the line through the last two (1).

        The line is TaylorSeer's (arXiv 2503.06923) and SeaCache's of first order: R_l + (R_l - R_p) (t - l) / (l - p).
        """
        if order == 0 or len(self.steps) < 2:
            return self.added[-1]
        (before, last), (older, newer) = self.steps[-2:], self.added[-2:]
        return newer.lerp(older, (last - step) / (last - before))
