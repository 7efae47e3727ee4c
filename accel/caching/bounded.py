"""What DBCache and DBPrune share: the blocks that always run, and what must hold before anything is compared."""

from __future__ import annotations

from dataclasses import dataclass, field

from accel.attention.call import Progress
from accel.caching.policy import Policy
from accel.errors import InputError
from accel.naming import check_least


@dataclass
class ReusedSteps:
    """The steps in which something was reused, in one branch, and how many of them end the row."""

    steps: list[int] = field(default_factory=list)
    in_a_row: int = 0

    def begin(self, step: int) -> None:
        """Note that a step starts: a computed one ends the row."""
        if self.steps and self.steps[-1] < step - 1:
            self.in_a_row = 0

    def add(self, step: int) -> None:
        """Note that something is reused in a step."""
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
            self.in_a_row += 1

    def before(self, step: int) -> int:
        """Return how many steps in a row were reused until the one before this."""
        return self.in_a_row - (1 if self.steps and self.steps[-1] == step else 0)


@dataclass(frozen=True)
class Bounded(Policy):
    """Blocks rest where what goes in changed by less than `threshold` (relative L1); 1 is always, 0 never.

    The `first` blocks always run (None: the published 8, in shallow models a third of them, at least one), and the
    `last` ones. Of the warm-up every `interval`-th step is computed. Nothing rests in more than `most_steps` steps,
    nor in more than `most_in_a_row`; with `prune`, as published, a step counts from its first block that rests, so that
    in the last of `most_steps` no other does. A `mask` of 1 and 0 a step computes where it says 1; with `static`
    whatever comes where it says 0 is reused without a look. Published: 8 warm-up steps, here 8 of Wan's 50.
    """

    warmup: float = 0.16
    threshold: float = 0.08
    first: int | None = None
    last: int = 0
    interval: int = 1
    most_steps: int | None = None
    most_in_a_row: int | None = None
    mask: str | int | None = None
    static: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "threshold", "last", "most_steps", "most_in_a_row")
        check_least(self, 1, "first", "interval")
        if self.mask is not None and set(str(self.mask)) - set("01"):
            raise ValueError(f"mask must hold a 1 or 0 for each step, got {self.mask!r}")

    def middle(self, depth: int) -> range:
        """Return the blocks that may rest; InputError if none is left."""
        first = max(1, min(8, depth // 3)) if self.first is None else self.first
        if first + self.last >= depth:
            raise InputError(
                f"first {first} and last {self.last} blocks always run, and the model has {depth}: none is left to rest"
            )
        return range(first, depth - self.last)

    def check_schedule(self, steps: int) -> None:
        """Raise InputError for a mask of another number of steps."""
        if self.mask is not None and len(str(self.mask)) != steps:
            raise InputError(f"mask is {self.mask}, and this generation has {steps} steps: give as many")

    def verdict(self, progress: Progress, reused: ReusedSteps) -> bool | None:
        """Return whether blocks rest in this step where that is clear without a look at them, else None."""
        step = progress.step
        if self.warming(progress) and progress.number % self.interval == 0:
            return False
        if self.mask is not None:
            self.check_schedule(progress.steps)
            if str(self.mask)[step : step + 1] == "1":
                return False
            if self.static:
                return True
        if self.most_steps is not None and len(reused.steps) >= self.most_steps:
            return False
        if self.most_in_a_row is not None and reused.before(step) >= self.most_in_a_row:
            return False
        return False if self.threshold == 0 else None
