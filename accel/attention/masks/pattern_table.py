"""The patterns that a search over a model gave its heads (Sparse-vDiT, section 4)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from accel.attention.call import AttentionCall, Progress
from accel.attention.masks.head_modes import MODES
from accel.files import replacing


@dataclass(frozen=True)
class PatternTable:
    """The chosen mode of every head: `steps_modes[step][layer][head]`, searched on `grid` tokens of `model`."""

    model: str
    grid: tuple[int, int, int]
    steps_modes: list[list[list[str]]]

    def fits(self, call: AttentionCall) -> bool:
        """Whether the table was made for this geometry, and as many layers and heads."""
        own_heads = call.share is not None or len(self.steps_modes[0][0]) == call.q.shape[1]
        return tuple(self.grid) == call.geometry.grid and len(self.steps_modes[0]) == call.layers and own_heads

    def described(self) -> str:
        """Return what it was made for, in words."""
        layers, heads = len(self.steps_modes[0]), len(self.steps_modes[0][0])
        return f"{self.model}, {tuple(self.grid)} tokens, {layers} layers and {heads} heads"

    def modes(self, progress: Progress, layer: int) -> list[str]:
        """Return the layer's modes at this point of the schedule; another number of steps takes the nearest."""
        step = progress.step * len(self.steps_modes) // progress.steps
        return self.steps_modes[step][layer]

    def save(self, path: Path) -> None:
        """Write the table as JSON, replacing the file at once."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> PatternTable:
        """Read a table; ValueError when the file is none."""
        try:
            fields = json.loads(path.read_text())
            table = cls(fields["model"], tuple(fields["grid"]), fields["steps_modes"])
            heads = [modes for step in table.steps_modes for modes in step]
            unknown = sorted({str(mode) for modes in heads for mode in modes if mode not in MODES})
            sizes = {len(step) for step in table.steps_modes}, {len(modes) for modes in heads}
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a pattern table (JSON with model, grid, steps_modes): {error}") from error
        if unknown or any(len(each) != 1 for each in sizes):
            wrong = f"modes {', '.join(unknown)}" if unknown else "steps or layers of several sizes, or none"
            raise ValueError(f"{path} is not a pattern table: it has {wrong}; accepted modes: {', '.join(MODES)}")
        return table
