"""DBCache (cache-dit 1.5): the first blocks always run and decide, by what they added, for those in the middle."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from accel.caching.bounded import Bounded, ReusedSteps
from accel.caching.change import relative_change
from accel.caching.policy import BlockCall, Compute, Decision, Memory, Reuse
from accel.naming import check_least


@dataclass
class DualBlockState:
    """What the first blocks added in the latest computed step, and the sum of all changes since the start."""

    residual: Tensor | None = None
    change: float = 0.0


@dataclass(frozen=True)
class DualBlock(Bounded):
    """Let the middle rest where what the first blocks added is near to what they added when it was last computed.

    The `last` blocks run on what the rest gave. With `most_change` all is computed once the changes, of computed and
    reused steps, sum up to that. Waits for the device once a call.
    """

    most_change: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "most_change")

    def units(self, depth: int) -> tuple[range, ...]:
        """Return the middle: it is decided about as one."""
        return (self.middle(depth),)

    def decide(self, call: BlockCall, memory: Memory) -> Decision:
        """Return reuse where the first blocks add about the same."""
        state, reused = memory.own(DualBlockState), memory.own(ReusedSteps)
        reused.begin(call.step)
        residual = call.x - call.entry.to(call.x.device)
        rests = self.verdict(call.progress, reused)
        if self.most_change is not None and state.change >= self.most_change and rests is None:
            rests = False
        if rests is None:
            rests = self._is_near(residual, state)
        reuses = bool(rests) and state.residual is not None
        if reuses:
            reused.add(call.step)
        else:
            state.residual = residual
        if call.progress.is_last:
            state.residual = None
        return Reuse(self.order) if reuses else Compute()

    def _is_near(self, residual: Tensor, state: DualBlockState) -> bool:
        if state.residual is None:
            return False
        if self.threshold >= 1:
            return True
        change = float(relative_change(residual, state.residual))
        state.change += max(change, 0.0)
        return change < self.threshold
