"""EasyCache (arXiv 2507.02860): the whole transformer rests while its output is foreseen to change little."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from accel.attention.call import Progress
from accel.caching.change import mean_change, mean_size
from accel.caching.policy import BlockCall, Compute, Decision, Memory, Policy, Reuse, check_steps, step_count
from accel.naming import check_least


@dataclass
class EasyState:
    """What the leading branch saw: the latents of the step before; latents and output of the latest computed one."""

    leader: str | None = None
    step: int | None = None
    decision: Decision = Compute()
    before: Tensor | None = None
    x: Tensor | None = None
    v: Tensor | None = None
    growth: Tensor | None = None  # the paper's k
    error: Tensor | float = 0.0


@dataclass(frozen=True)
class EasyCache(Policy):
    """Add up how far the output moves, foreseen from the latents; below the threshold all branches of a step reuse.

    The output v moves about k times as far as the latents x do, k as measured between the latest two computed steps;
    each step adds k mean|x_t - x_(t-1)| / mean|v|. Published for Wan: threshold 0.05, the first 10 of 50 steps and the
    last one computed; 0.025 and 5 steps for HunyuanVideo. The conditional branch decides, else the first one called;
    where a model takes all branches as one batch, each decides for itself. Waits for the device once a step.
    """

    threshold: float = 0.05
    last: float = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "threshold")
        check_steps(self, "last")

    def decide(self, call: BlockCall, memory: Memory) -> Decision:
        """Return what was decided for this step, by the branch that leads."""
        state = memory.shared(EasyState)
        if state.step != call.step:
            self._learn(state, memory)
            state.step, state.decision = call.step, self._judge(call, state)
            state.before = call.x.clone()
        if state.leader is None or call.progress.branch == "cond":
            state.leader = call.progress.branch
        return state.decision

    def _learn(self, state: EasyState, memory: Memory) -> None:
        """Take k and the output from the step before, if it was computed: `before` are its latents still."""
        history = memory.history(state.leader)
        if state.before is None or not history.steps or history.steps[-1] != state.step:
            return
        v = state.before + history.added[-1]
        if state.x is not None and state.v is not None:
            state.growth = mean_change(v, state.v) / mean_change(state.before, state.x)
        state.x, state.v = state.before, v

    def _judge(self, call: BlockCall, state: EasyState) -> Decision:
        if self._forced(call.progress):
            state.error = 0.0
            return Compute()
        if state.before is None or state.v is None or state.growth is None:
            return Compute()
        state.error = state.error + state.growth * mean_change(call.x, state.before) / mean_size(state.v)
        if bool(state.error < self.threshold):
            return Reuse(self.order)
        state.error = 0.0
        return Compute()

    def _forced(self, progress: Progress) -> bool:
        return self.warming(progress) or progress.number >= progress.runs - step_count(self.last, progress.runs)
