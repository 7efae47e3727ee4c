"""Offline search of head patterns over a model, and the table it leaves (Sparse-vDiT, section 4)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.attention.call import AttentionCall, LayerMemory, Progress
from accel.attention.plan import Computed, Plan

if TYPE_CHECKING:
    from accel.methods.sparse_vdit import SparseVDiT


@dataclass(frozen=True)
class PatternTable:
    """The chosen mode of every head: `steps_modes[step][layer][head]`, searched on `grid` tokens of `model`."""

    model: str
    grid: tuple[int, int, int]
    steps_modes: list[list[list[str]]]

    def fits(self, call: AttentionCall) -> bool:
        """Whether the table was made for this geometry and number of layers."""
        grid = (call.geometry.frames, call.geometry.height, call.geometry.width)
        return tuple(self.grid) == grid and len(self.steps_modes[0]) == call.layers

    def modes(self, progress: Progress, layer: int) -> list[str]:
        """Return the layer's modes at this point of the schedule; another number of steps takes the nearest."""
        step = min(len(self.steps_modes) - 1, int(progress.fraction * len(self.steps_modes)))
        return self.steps_modes[step][layer]

    def save(self, path: Path) -> None:
        """Write the table as JSON, replacing the file at once."""
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> PatternTable:
        """Read a table; ValueError when the file is none."""
        try:
            fields = json.loads(path.read_text())
            return cls(fields["model"], tuple(fields["grid"]), fields["steps_modes"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a pattern table (JSON with model, grid, steps_modes): {error}") from error


@dataclass(frozen=True)
class PatternSearch:
    """A method that computes every call in full, notes each head's best mode, and passes on the sparse output.

    The next layer sees what it will see at inference, so that errors propagate as in the paper.
    """

    method: SparseVDiT
    notes: dict[tuple[int, int], list[str]]

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return the mixed output of the modes chosen for this call."""
        from accel.attention.execute import dense_attention, execute
        from accel.attention.schedule import is_dense

        out = dense_attention(call)
        modes, columns = self.method.choose(call, out)
        self.notes[call.progress.step, call.layer] = modes[0]
        if is_dense(call, self.method.dense_steps, self.method.dense_layers):
            return Computed(out)
        return Computed(execute(call, self.method._plan(call, modes, columns))[0])


def search_patterns(pipeline: Any, method: SparseVDiT, name: str, **call_arguments: Any) -> PatternTable:
    """Run one generation of `pipeline` and return the table of the modes that its heads chose."""
    from accel.attach import enabled

    notes: dict[tuple[int, int], list[str]] = {}
    with enabled(pipeline, PatternSearch(method, notes)) as handle:
        pipeline(**call_arguments, output_type="latent")
        geometry = handle.geometry
    if not notes or geometry is None:
        raise ValueError("the search saw no attention call with a known step and grid; is the model supported?")
    steps, layers = (max(key[i] for key in notes) + 1 for i in range(2))
    modes = [[notes[step, layer] for layer in range(layers)] for step in range(steps)]
    return PatternTable(name, (geometry.frames, geometry.height, geometry.width), modes)
