"""Where the denoising loop is, and what belongs to one generation and dies with it."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

from accel.attention.call import Geometry, LayerMemory, Progress
from accel.models.records import Records


class Generation:
    """One video in the making: where it is, what the layers remember, what happened."""

    def __init__(self, schedule: Any):
        self.schedule = schedule
        self.geometry: Geometry | None = None
        self.progress: Progress | None = None
        self.records = Records()
        self.memories: dict[tuple[int, str, Geometry], LayerMemory] = defaultdict(LayerMemory)
        self.peak_memory_bytes = 0
        self.finished = False

    def memory_bytes(self) -> int:
        """Return the size of all that the layers remember now, in bytes."""
        return sum(memory.nbytes() for memory in self.memories.values())

    def note_memory(self) -> None:
        """Remember the most that was ever remembered."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory_bytes())

    def precedes(self, progress: Progress | None, schedule: Any, repeats: bool) -> bool:
        """Whether a call of this progress and schedule goes on here, and does not start another generation.

        Pipelines make a new schedule for every generation, also after one that was interrupted. `repeats` says that
        the step is the loop's own index, which one branch passes once.
        """
        if self.finished or schedule is not self.schedule:
            return False
        before = self.progress
        if before is None or progress is None:
            return True
        again = repeats and (progress.step, progress.branch) == (before.step, before.branch)
        return progress.step >= before.step and progress.steps == before.steps and not again


class Denoising:
    """The generation that runs on each thread: a transformer may serve several pipelines at a time."""

    def __init__(self) -> None:
        self._threads = threading.local()
        self.latest = Generation(None)

    @property
    def current(self) -> Generation:
        """The generation of this thread."""
        return getattr(self._threads, "generation", self.latest)

    def begin_call(
        self, geometry: Geometry | None, progress: Progress | None, schedule: Any = None, repeats: bool = False
    ) -> None:
        """Note grid and progress of the transformer call that starts, and whether it starts a new generation.

        `schedule` is the object that holds the steps of this generation, where it is known.
        """
        generation = getattr(self._threads, "generation", None)
        if generation is None or not generation.precedes(progress, schedule, repeats):
            generation = self._threads.generation = self.latest = Generation(schedule)
        generation.note_memory()
        generation.geometry, generation.progress = geometry, progress

    def end_generation(self) -> None:
        """Drop what the layers remember; the records stay readable until the next generation starts."""
        generation = self.current
        generation.note_memory()
        generation.memories.clear()
        generation.finished = True
        generation.progress = None
