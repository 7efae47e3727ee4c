"""DBPrune (cache-dit 1.5): each block rests where what goes into it is near to what went in when it was computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from accel.caching.bounded import Bounded, ReusedSteps
from accel.caching.change import relative_change
from accel.caching.policy import BlockCall, Compute, Decision, Memory, Reuse
from accel.errors import InputError
from accel.naming import check_least

COMPARED = 5  # changes of a step that its relaxed threshold comes from


@dataclass
class PruneInput:
    """What went into a block when it was last computed."""

    x: Tensor | None = None


@dataclass
class PruneChanges:
    """How far the inputs of this step's blocks were from those of old, in the order of the blocks."""

    step: int | None = None
    changes: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Prune(Bounded):
    """Judge each block by its input; the blocks of `kept` always run, beside the first and the last.

    `relaxed` raises the threshold to `relax` times the mean of the first five changes of a step, if that is below
    `most_threshold` (None: twice the threshold). Keeps the input and what it added of every block. Waits for the
    device once a block: what goes into one is known only when those before it ran.
    """

    kept: tuple[int, ...] = ()
    relaxed: bool = False
    relax: float = 1.25
    most_threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "relax", "most_threshold")

    def units(self, depth: int) -> tuple[range, ...]:
        """Return the blocks that may rest, each by itself; InputError if one that is to be kept is not there."""
        if not all(0 <= index < depth for index in self.kept):
            raise InputError(f"kept is {self.kept}, and the model has the blocks 0 to {depth - 1}: give some of these")
        return tuple(range(index, index + 1) for index in self.middle(depth) if index not in self.kept)

    def decide(self, call: BlockCall, memory: Memory) -> Decision:
        """Return reuse where the input is about the same."""
        before, reused = memory.own(PruneInput), memory.branch(ReusedSteps)
        reused.begin(call.step)
        rests = self.verdict(call.progress, reused)
        if rests is None:
            rests = before.x is not None and self._is_near(call, before.x, memory.branch(PruneChanges))
        reuses = bool(rests) and before.x is not None
        if reuses:
            reused.add(call.step)
        else:
            before.x = call.x
        if call.progress.is_last:
            before.x = None
        return Reuse(self.order) if reuses else Compute()

    def _is_near(self, call: BlockCall, before: Tensor, noted: PruneChanges) -> bool:
        if noted.step != call.step:
            noted.step, noted.changes = call.step, []
        threshold = self._threshold(noted.changes)
        if threshold >= 1:
            noted.changes.append(-1.0)
            return True
        noted.changes.append(float(relative_change(call.x, before)))
        return noted.changes[-1] < threshold

    def _threshold(self, changes: list[float]) -> float:
        positive = [change for change in changes[:COMPARED] if change > 0]
        if not self.relaxed or not positive:
            return self.threshold
        most = 2 * self.threshold if self.most_threshold is None else self.most_threshold
        higher = self.relax * sum(positive) / len(positive)
        return max(higher, self.threshold) if higher < most else self.threshold
