"""Attention over all keys on our kernel: what a method gains must be seen beside it."""

from __future__ import annotations

from dataclasses import dataclass

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.execute import full_plan
from accel.attention.plan import Dense, Plan
from accel.attention.schedule import is_dense
from accel.methods.checks import check_common


@dataclass(frozen=True)
class Full:
    """Leave nothing out: exact, and the share of a speed-up that is the kernel's own and not that of sparsity."""

    density: float = 1.0
    dense_steps: float = 0.0
    dense_layers: int = 0
    block: int = 64

    def __post_init__(self) -> None:
        check_common(self)
        if self.density != 1:
            raise ValueError(f"full attention has density 1, got {self.density}; take another method for less")

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return the plan of all blocks, or dense in the warm-up."""
        if is_dense(call, self.dense_steps, self.dense_layers):
            return Dense()
        if "plan" not in memory.values:
            memory.values["plan"] = full_plan(call, self.block)
        return memory.values["plan"]
