"""What belongs to one generation and dies with it; `progress` tells it where the loop is."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from accel.attention.call import Geometry, LayerMemory, Progress
from accel.methods.method import Choice
from accel.models.records import BlockRecord, Records


class Generation:
    """One video in the making: where it is, what the layers remember, what happened."""

    def __init__(self) -> None:
        self.schedule: Any = None
        self.geometry: Geometry | None = None
        self.progress: Progress | None = None
        self.choice: Choice | None = None  # of a method that stands for others
        self.branches: set[str] = set()  # seen in this step
        self.records = Records()
        self.obstacles: Counter[str] = Counter()  # reasons of calls that were left to the pipeline, and how many
        self.blocks: list[BlockRecord] = []
        self.calls = 0  # of the transformer
        self.mask: tuple[Any, bool, list[slice | Tensor] | None] | None = None  # read last, and what it says
        self.in_pieces = True  # whether devices that share a sequence hold its text by turns; unknown is yes
        self.memories: dict[Hashable, LayerMemory] = defaultdict(LayerMemory)
        self.peak_memory_bytes = 0
        self.finished = False

    def memory_bytes(self) -> int:
        """Return the size of all that layers and caches remember now, in bytes."""
        return sum(memory.nbytes() for memory in self.memories.values())

    def note_memory(self) -> None:
        """Remember the most that was ever remembered."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory_bytes())

    def continues(self, progress: Progress | None, schedule: Any, repeats: bool, begins: bool) -> bool:
        """Whether a call of this progress belongs here, and does not start another generation.

        After one that was interrupted, the next one comes back to a step and branch that were seen. So does a solver of
        second order, but not with a new schedule, nor (`repeats`) where steps are counted by the loop. Or the next one
        `begins` at a later step, on a new schedule; one that does not begin there is another pipeline's.
        """
        before = self.progress
        if self.finished or before is None or progress is None:
            return not self.finished
        if progress.step == before.step and progress.branch in self.branches:
            return not repeats and schedule is self.schedule
        if begins and progress.step > before.step and schedule is not self.schedule:
            return False
        return progress.step >= before.step and progress.steps == before.steps

    def begin_call(self, geometry: Geometry | None, progress: Progress | None, schedule: Any) -> None:
        """Note where the call that starts is."""
        self.note_memory()
        self.calls += 1
        if progress is not None:
            if self.progress is None or progress.step != self.progress.step:
                self.branches.clear()
            self.branches.add(progress.branch)
        self.geometry, self.progress, self.schedule = geometry, progress, schedule

    def end(self) -> None:
        """Drop what the layers remember."""
        self.note_memory()
        self.memories.clear()
        self.mask = None
        self.finished, self.progress = True, None


class Denoising:
    """The generation that runs on each thread: a transformer may serve several pipelines at a time."""

    def __init__(self) -> None:
        self._threads = threading.local()
        self.latest = Generation()
        self.at_start: Callable[[Generation], None] | None = None  # called with each generation that starts

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the generations, and who looks on: a copy of a transformer begins its own."""
        return Denoising, ()

    @property
    def current(self) -> Generation:
        """The generation of this thread."""
        return getattr(self._threads, "generation", self.latest)

    def begin_call(
        self,
        geometry: Geometry | None,
        progress: Progress | None,
        schedule: Any = None,
        repeats: bool = False,
        begins: bool = False,
    ) -> None:
        """Note grid and progress of the transformer call that starts, and whether it starts a new generation.

        `schedule` is the object that holds the steps of this generation, where it is known; `repeats` says that a step
        that one branch sees again is another generation's, `begins` that the schedule's first step is this one.
        """
        generation = getattr(self._threads, "generation", None)
        if generation is None or not generation.continues(progress, schedule, repeats, begins):
            generation = self._threads.generation = self.latest = Generation()
            if self.at_start is not None:
                self.at_start(generation)
        generation.begin_call(geometry, progress, schedule)

    def drop_where_done(self, progress: Progress | None) -> None:
        """Drop what is remembered where another transformer of the pipeline is two steps ahead: it has taken over."""
        generation: Generation | None = getattr(self._threads, "generation", None)
        if generation is None or generation.progress is None or progress is None:
            return
        if progress.step >= generation.progress.step + 2:
            generation.note_memory()
            generation.memories.clear()

    def end_generation(self) -> None:
        """Drop what layers and caches remember; the records stay readable until the next generation starts."""
        self.current.end()
