"""A fixed schedule: which block rests at which step, calibrated for a model or every few steps.

Learning-to-Cache (arXiv 2406.01733), SmoothCache (arXiv 2411.10510) and MagCache (arXiv 2506.09045) end in such tables.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from accel.caching.policy import DIGITS, BlockCall, Compute, Decision, Memory, Policy, Reuse, Skip, step_count
from accel.errors import InputError
from accel.files import replacing
from accel.models.adapters.adapter import Adapter
from accel.naming import check_least

LETTERS = "crs"
ADVICE = "take table:every=2, which fits all, or calibrate one"


@dataclass(frozen=True)
class BlockTable:
    """For each step one letter a block: c computes it, r reuses what it added, s skips it.

    `model` is the transformer's class, or "" for any, `order` that of the forecast which the table was made for.
    """

    model: str
    steps: tuple[str, ...]
    order: int = 0

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.steps[0])

    def save(self, path: Path) -> None:
        """Write the table as JSON, replacing the file at once."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> BlockTable:
        """Read a table; InputError when the file is none."""
        try:
            fields = json.loads(path.read_text())
            model, steps, order = fields["model"], fields["steps"], fields.get("order", 0)
            is_table = isinstance(model, str) and isinstance(steps, list) and bool(steps) and _is_rectangle(steps)
            is_table = is_table and type(order) is int and order in (0, 1)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{str(path)!r} is no table of blocks ({error}); make one with accel calibrate") from error
        if not is_table:
            raise InputError(
                f"{str(path)!r} is no table of blocks: it must hold a model, an order of 0 or 1 and, for each step, "
                f"equally many of the letters {', '.join(LETTERS)}; make one with accel calibrate"
            )
        return cls(model, tuple(steps), order)


def _is_rectangle(steps: list[Any]) -> bool:
    words = all(isinstance(step, str) and step and not set(step) - set(LETTERS) for step in steps)
    return words and len({len(step) for step in steps}) == 1


@dataclass(frozen=True)
class Table(Policy):
    """Follow a `table`, given as such or by its file; without one, compute every `every`-th step after the warm-up.

    With a `growth` each gap between computed steps is by so much longer than the one before, which begin with `every`:
    what is extrapolated changes less and less. A table's own steps and order hold, without a warm-up; a loop that
    begins in its middle repeats until two of its computed steps have run. Nothing waits for the device. Neighbouring
    blocks that rest together keep one tensor.
    """

    table: BlockTable | str | None = None
    every: int = 2
    growth: int = 0
    by_content: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.table, str):
            object.__setattr__(self, "table", BlockTable.load(Path(self.table)))
        if isinstance(self.table, BlockTable):
            object.__setattr__(self, "order", self.table.order)
        super().__post_init__()
        check_least(self, 1, "every")
        check_least(self, 0, "growth")

    @property
    def takes_whole(self) -> bool:
        """Whether it is a schedule of steps, and no table of blocks."""
        return not isinstance(self.table, BlockTable)

    def computed_steps(self, steps: int) -> list[int]:
        """Return which of the steps compute a block."""
        if isinstance(self.table, BlockTable):
            return [step for step, letters in enumerate(self.table.steps) if "c" in letters]
        return [step for step in range(steps) if self._due(step, steps)]

    def check_schedule(self, steps: int) -> None:
        """Raise InputError for a table of another number of steps."""
        if isinstance(self.table, BlockTable) and steps != len(self.table.steps):
            raise InputError(
                f"the table is of {len(self.table.steps)} steps, and this generation has {steps}: "
                f"{ADVICE} with accel calibrate --steps {steps}"
            )

    def digest(self) -> str | None:
        """Return what tells a table from others, whatever its file; None without one."""
        if not isinstance(self.table, BlockTable):
            return None
        return hashlib.sha256(json.dumps(asdict(self.table)).encode()).hexdigest()[:DIGITS]

    def check(self, transformer: nn.Module, adapter: Adapter) -> None:
        """Raise InputError for a table of another model."""
        model = type(transformer).__name__
        if isinstance(self.table, BlockTable) and self.table.model not in ("", model):
            raise InputError(
                f"the table is of {self.table.model}, and this is {model}: {ADVICE} where accel calibrate takes it"
            )

    def units(self, depth: int) -> tuple[range, ...]:
        """Return the neighbours that rest together, without those that never do; InputError for another depth."""
        if not isinstance(self.table, BlockTable):
            return (range(depth),)
        if self.table.depth != depth:
            raise InputError(
                f"the table is of a model with {self.table.depth} blocks ({self.table.model}), and this one has "
                f"{depth}: {ADVICE} where accel calibrate takes it"
            )
        columns = list(zip(*self.table.steps, strict=True))
        groups = [list(group) for _, group in groupby(range(depth), key=lambda index: columns[index])]
        resting = [group for group in groups if set(columns[group[0]]) != {"c"}]
        return tuple(range(group[0], group[-1] + 1) for group in resting or groups)

    def decide(self, call: BlockCall, memory: Memory) -> Decision:
        """Return what the table says, or the interval."""
        if not isinstance(self.table, BlockTable):
            return Compute() if self._due(call.progress.number, call.progress.runs) else Reuse(self.order)
        self.check_schedule(call.progress.steps)
        letter = self.table.steps[call.step][call.blocks[0]]
        return {"c": Compute(), "r": Reuse(self._known_order(call, memory)), "s": Skip()}[letter]

    def _known_order(self, call: BlockCall, memory: Memory) -> int:
        """Return the table's order, 0 where the line would go through a step that is computed only because it is first.

        That may lie just before a computed step, and a line through neighbours leads far off.
        """
        if call.progress.first == 0:
            return self.order
        assert isinstance(self.table, BlockTable)
        computed = [step for step in memory.history().steps if self.table.steps[step][call.blocks[0]] == "c"]
        return self.order if len(computed) > 1 else 0

    def _due(self, step: int, steps: int) -> bool:
        """Whether a step is computed where there is no table."""
        warm = step_count(self.warmup, steps)
        if step < warm:
            return True
        if not self.growth:
            return step % self.every == 0
        latest, gap = max(warm - 1, 0), self.every
        while latest < step:
            latest, gap = latest + gap, gap + self.growth
        return latest == step
