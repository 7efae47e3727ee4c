"""How far the output moves if one block rests at one step, and the schedule that moves it least for its cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from accel.caching.forecast import History
from accel.caching.resting import Forward, Resting
from accel.caching.table import Table
from accel.errors import InputError
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.streams import with_controls
from accel.models.denoising import Denoising

SKIP = 0  # in place of the age of what is reused


@dataclass
class Past:
    """What each group of blocks added to each stream at the latest steps of one branch."""

    groups: dict[int, list[History]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Trial:
    """One run through the blocks: the first one notes them, the others repeat those before the ones that rest."""

    inputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    rests: range | None = None
    adds: list[Tensor | None] | None = None


class Measuring(Resting):
    """Computes every call in full, then once more for each group of blocks and age of what it reuses, or skipping it.

    A group has `size` blocks, None is all. `errors[step, group, age]` is the sum of squared differences of the output,
    over all calls; the age of 0 is a skip. InputError in a call of another number of `steps`, None is any.
    """

    def __init__(
        self,
        transformer: nn.Module,
        adapter: Adapter,
        denoising: Denoising,
        ages: int,
        order: int,
        size: int | None = None,
        steps: int | None = None,
    ):
        super().__init__(Table(every=1), transformer, adapter, denoising)
        self.units = ()  # hooks on all blocks
        self.ages, self.order, self.steps = ages, order, steps
        starts = range(0, self.depth, size or self.depth)
        self.groups = [range(start, min(start + (size or self.depth), self.depth)) for start in starts]
        self.errors: dict[tuple[int, int, int], Tensor] = {}

    def forward(self, module: nn.Module, stock: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the output of all blocks; note what it would have been."""
        generation = self.denoising.current
        progress = generation.progress
        if progress is None:
            raise InputError("the denoising step of a call is unknown; calibrate with the pipeline")
        if self.steps not in (None, progress.steps):
            raise InputError(
                f"steps is {self.steps}, and the scheduler makes {progress.steps} of them (is it of second order?): "
                "calibrate with one that makes as many as asked for"
            )
        past = generation.memories[Past, progress.branch].of(Past).groups
        self._threads.now = trial = Trial()
        output = stock(*args, **kwargs)
        for number, group in enumerate(self.groups):
            pasts = past[number] = past[number] or [History() for _ in self.adapter.streams.given]
            for age in range(min(self.ages, len(pasts[0].steps)) + 1):
                trial.rests, trial.adds = group, [self._added(each, progress.step, age) for each in pasts]
                moved = (stock(*args, **kwargs)[0] - output[0]).float().square().sum()
                key = progress.step, number, age
                self.errors[key] = moved + self.errors.get(key, 0)
            outputs = [self.adapter.streams.outputs(trial.outputs[index]) for index in group]
            starts, ends = trial.inputs[group[0]], outputs[-1]
            for before, index in zip(outputs, group[1:], strict=False):
                starts = with_controls(starts, before, trial.inputs[index])
            for each, start, end in zip(pasts, starts, ends, strict=True):
                if end is not None:
                    each.keep(progress.step, end - start, self.ages + self.order * (self.ages + 1))
        self._threads.now = None
        return output

    def enter(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a block gave, or what it gives where it rests; None where it is to run."""
        trial: Trial = self._threads.now
        streams = self.adapter.streams
        inputs = streams.inputs(args, kwargs)
        if trial.rests is None:
            trial.inputs.append(inputs)
            return None
        if index < trial.rests[0]:
            return trial.outputs[index]
        if index in trial.rests:
            adds = trial.adds if trial.adds is not None and index == trial.rests[0] else [None] * len(inputs)
            return streams.packed(tuple(x if a is None else x + a for x, a in zip(inputs, adds, strict=True)))
        return None

    def leave(self, index: int, output: Any) -> None:
        """Note what a block gave in the first run."""
        trial: Trial = self._threads.now
        if trial.rests is None:
            trial.outputs.append(output)

    def _added(self, history: History, step: int, age: int) -> Tensor | None:
        """Return what a group would add had it last been computed `age` calls ago, and age + 1 calls before that.

        These are the gaps of a schedule that goes on as it is; nearer ones would flatter the forecast.
        """
        if age == SKIP or not history.steps:
            return None
        last = len(history.steps) - age
        chosen = [last] if last == 0 else [max(0, last - age - 1), last]
        past = History([history.steps[i] for i in chosen], [history.added[i] for i in chosen])
        return past.forecast(step, self.order)


def choose(
    errors: Float[np.ndarray, "steps groups ages"],
    budget: float,
    warmup: int = 1,
    sizes: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Return a word a step, as in a `BlockTable`, of the least sum of errors with a share `budget` computed at most.

    `errors[..., 0]` are those of skipping, `errors[..., age]` of reusing, infinite where there is nothing to reuse.
    The first `warmup` steps are computed. `sizes` are the blocks of each group, None is one. Exact for errors that add
    up.
    """
    steps, groups, _ = errors.shape
    counts = [1] * groups if sizes is None else list(sizes)
    columns = [_columns(errors[:, group], warmup) for group in range(groups)]
    least = np.full(sum(counts) * steps + 1, np.inf)  # by the number of computed blocks
    least[0] = 0.0
    picks: list[np.ndarray] = []
    for size, column in zip(counts, columns, strict=True):
        merged, pick = np.full_like(least, np.inf), np.zeros(len(least), dtype=int)
        for count, (cost, _) in column.items():
            blocks = count * size
            moved = np.concatenate([np.full(blocks, np.inf), least[: len(least) - blocks] + cost])
            pick[moved < merged] = count
            merged = np.minimum(merged, moved)
        least = merged
        picks.append(pick)
    total = int(np.argmin(least[: check_budget(budget, warmup, steps, sum(counts)) + 1]))
    if not np.isfinite(least[total]):
        raise InputError(
            f"budget is {budget:g}, and at too many steps no error of a block that rests is finite: "
            "give a larger one, or calibrate in float32"
        )
    words = []
    for size, column, pick in zip(reversed(counts), reversed(columns), reversed(picks), strict=True):
        count = int(pick[total])
        words.append(column[count][1])
        total -= count * size
    return tuple("".join(letters) for letters in zip(*reversed(words), strict=True))


def check_budget(budget: float, warmup: int, steps: int, depth: int) -> int:
    """Return how many blocks of all steps a share `budget` computes at most; InputError if a warm-up needs more."""
    most = math.floor(budget * steps * depth + 1e-9)
    if most < warmup * depth:
        raise InputError(
            f"budget is {budget:g}, and the warm-up alone computes {warmup / steps:g} of all blocks: give a larger one"
        )
    return most


def _columns(errors: Float[np.ndarray, "steps ages"], warmup: int) -> dict[int, tuple[float, str]]:
    """Return for each number of computed steps the least error of one block, and its letters."""
    # (computed steps so far, age of what the next step would reuse) -> error, letters
    best: dict[tuple[int, int], tuple[float, str]] = {(0, 1): (0.0, "")}
    for step, error in enumerate(errors):
        after: dict[tuple[int, int], tuple[float, str]] = {}
        for (count, age), (cost, word) in best.items():
            options = [((count + 1, 1), cost, word + "c")]
            if step >= warmup:
                older = min(age + 1, len(error))
                options.append(((count, older), cost + error[SKIP], word + "s"))
                if age < len(error):
                    options.append(((count, older), cost + error[age], word + "r"))
            for key, total, letters in options:
                if total < after.get(key, (math.inf, ""))[0]:
                    after[key] = total, letters
        best = after
    counts = {count for count, _ in best}
    return {count: min(value for (other, _), value in best.items() if other == count) for count in counts}
