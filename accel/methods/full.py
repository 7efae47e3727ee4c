"""Attention over all keys on our kernel: what a method gains must be seen beside it."""

from __future__ import annotations

from dataclasses import dataclass

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.execute import full_plan
from accel.attention.plan import Dense, Plan, Sparse
from accel.methods.method import Scheduled, check_block


@dataclass
class FullState:
    """The plan of all blocks, made once."""

    plan: Sparse | None = None


@dataclass(frozen=True)
class Full(Scheduled):
    """Leave nothing out: exact, and the share of a speed-up that is the kernel's own and not that of sparsity."""

    density: float = 1.0
    block: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)
        if self.density != 1:
            raise ValueError(f"full attention has density 1, got {self.density}; take another method for less")

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return the plan of all blocks, or dense in the warm-up."""
        if self.phase(call) != "sparse":
            return Dense()
        state = memory.of(FullState)
        state.plan = state.plan or full_plan(call.q, self.block)
        return state.plan
