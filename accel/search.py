"""Offline search of head patterns over a model (Sparse-vDiT, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accel.attach import enabled
from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.execute import execute
from accel.attention.masks.pattern_table import PatternTable
from accel.attention.plan import Computed, Plan
from accel.methods.sparse_vdit import SparseVDiT


@dataclass(frozen=True)
class PatternSearch:
    """A method that computes every call in full, notes each head's best mode, and passes on the sparse output.

    The first sample and guidance branch of a step speak for the others. The next layer sees what it will see at
    inference, so that errors propagate as in the paper.
    """

    method: SparseVDiT
    notes: dict[tuple[int, int], list[str]]

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return the mixed output of the modes chosen for this call."""
        out = call.dense()
        modes, columns = self.method.choose_patterns(call, out)
        self.notes.setdefault((call.progress.step, call.layer), modes[0])
        if self.method.phase(call) != "sparse":
            return Computed(out)
        return Computed(execute(call, self.method.head_plan(call, modes, columns))[0])


def search_patterns(pipeline: Any, method: SparseVDiT, name: str, **call_arguments: Any) -> PatternTable:
    """Run one generation of `pipeline` and return the table of the modes that its heads chose."""
    notes: dict[tuple[int, int], list[str]] = {}
    with enabled(pipeline, PatternSearch(method, notes)) as handle:
        pipeline(**call_arguments, output_type="latent")
        geometry = handle.geometry
    if not notes or geometry is None:
        raise ValueError("the search saw no attention call with a known step and grid; is the model supported?")
    steps, layers = (max(key[i] for key in notes) + 1 for i in range(2))
    modes = [[notes[step, layer] for layer in range(layers)] for step in range(steps)]
    return PatternTable(name, geometry.grid, modes)
