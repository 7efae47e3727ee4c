"""What a network's layers cost, as rows, a table and JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

# Picojoules in 45 nm, 32-bit floating point (Horowitz, ISSCC 2014, figure 1.1.9): a sum costs 0.9, a product 3.7.
# E-3DSNN (arXiv 2412.07360) and SpikePoint (arXiv 2310.07189) use the same two.
ADDITION, MULTIPLICATION = 0.9, 4.6

Part = Literal["layer", "neuron", "activation", "norm", "pooling", "coding", "not counted"]


@dataclass(frozen=True)
class LayerEnergy:
    """One layer over all its calls: what it read, how often its inputs fired, and what that cost.

    `dense` is pairs of rows times channels in and out, all that a layer without spikes would multiply. `additions` and
    `multiplications` (each with its addition) are what is counted: dense times `rate`, or dense.
    """

    name: str
    kind: str
    part: Part
    calls: int
    reads: Literal["spikes", "values", ""] = ""
    rate: float | None = None
    pairs: int = 0
    dense: int = 0
    additions: float = 0.0
    multiplications: float = 0.0
    note: str = ""

    @property
    def picojoules(self) -> float:
        """The energy of all calls."""
        return ADDITION * self.additions + MULTIPLICATION * self.multiplications


@dataclass(frozen=True)
class Energy:
    """What one call of a network costs, its whole batch together, layers in the order in which they ran."""

    layers: tuple[LayerEnergy, ...]

    @property
    def picojoules(self) -> float:
        """The energy of the whole call."""
        return sum(layer.picojoules for layer in self.layers)

    @property
    def not_counted(self) -> list[str]:
        """The names of layers with parameters whose work is not known."""
        return [layer.name for layer in self.layers if layer.part == "not counted"]

    def of(self, part: str) -> float:
        """Return the picojoules of one part; published figures are those of `layer` alone."""
        return sum(layer.picojoules for layer in self.layers if layer.part == part)

    def to_json(self) -> str:
        """Return all rows and sums as JSON."""
        rows = [{**dataclasses.asdict(layer), "picojoules": layer.picojoules} for layer in self.layers]
        parts = {part: self.of(part) for part in dict.fromkeys(layer.part for layer in self.layers)}
        costs = {"addition": ADDITION, "multiplication": MULTIPLICATION}
        return json.dumps({"picojoules": self.picojoules, "parts": parts, "costs": costs, "layers": rows}, indent=2)

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(*("layer", "kind", "part", "reads", "rate", "additions", "multiplications", "nJ", "note"))
        for layer in self.layers:
            rate = "" if layer.rate is None else f"{layer.rate:.3f}"
            work = f"{layer.additions:,.0f}", f"{layer.multiplications:,.0f}", f"{layer.picojoules / 1000:,.2f}"
            table.add_row(layer.name, layer.kind, layer.part, layer.reads, rate, *work, layer.note)
        table.add_section()
        sums = sum(layer.additions for layer in self.layers), sum(layer.multiplications for layer in self.layers)
        table.add_row("all", "", "", "", "", *(f"{x:,.0f}" for x in sums), f"{self.picojoules / 1000:,.2f}", "")
        return table
