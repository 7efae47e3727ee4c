"""The runs of the page: stopped by those who started them, and found again by their folder."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.errors import InputError
from accel.methods.method import Method
from accel.methods.registry import PRESET, SPARSE_METHODS, from_text
from accel.workbench.comparison import Comparison, compare
from accel.workbench.generation import CallOptions
from accel.workbench.loading import LoadedPipeline
from accel.workbench.reporting import write_comparison
from accel.workbench.their_caches import Cache

CHOICES = (PRESET, *SPARSE_METHODS)  # the methods that the page offers
# Dense video, sparse video, rows of the table, picture, and what the browser keeps.
Shown = tuple[str | None, str | None, list[list[str]], str | None, dict[str, Any] | None]
NOTHING: Shown = (None, None, [], None, None)


class Stopped(Exception):
    """A run was stopped, or nobody is there to see it."""


class Runs:
    """Comparisons of one pipeline, written below `folder`; each belongs to the session of a browser's tab."""

    def __init__(self, loaded: LoadedPipeline, folder: Path):
        self.loaded = loaded
        self.folder = folder
        self._turn = threading.Lock()  # one run at a time has the pipeline
        self._running: dict[str, threading.Event] = {}  # set where a run is to end
        self._stopped: set[str] = set()  # sessions whose runs that still wait are not to begin

    def make(
        self,
        session: str,
        prompt: str,
        method: str,
        density: float | None,
        options: CallOptions,
        progress: Callable[[float, str], object],
    ) -> tuple[Comparison, Path, list[str]]:
        """Return what two generations gave, the folder of its files, and what there was to warn of.

        `method` is a name with options, as NAME:OPTION=VALUE. InputError or ValueError on bad input, Stopped after
        `stop` of this session: at the next step, or before the first if that was while it waited for others.
        """
        if not prompt.strip():
            raise InputError("The prompt is empty; say what the video shows.")
        chosen, cache = self._way(method, density, options.get("steps"))
        stop = self._running[session] = threading.Event()

        def report(share: float, message: str) -> None:
            if stop.is_set():
                raise Stopped
            progress(share, message)

        # Gradio lets the next run begin as soon as one is cancelled, whose thread still goes on to its next step.
        with self._turn, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if stop.is_set() or session in self._stopped:  # looked at late, so that no stop falls in between
                raise Stopped
            comparison = compare(self.loaded, chosen, prompt.strip(), cache=cache, progress=report, **options)
            written = Path(tempfile.mkdtemp(dir=self.folder))
            write_comparison(comparison, written)
        told = dict.fromkeys(str(each.message) for each in said if each.category is UserWarning)
        return comparison, written, list(told)

    def _way(self, method: str, density: float | None, steps: int | None) -> tuple[Method, Cache | None]:
        """Return the method, and for the preset alone the table of blocks beside the model, as accel generate does.

        The preset has a density of its own; with options it is the default method with these.
        """
        if method == PRESET:
            return from_text(method), self.loaded.calibrated(steps)
        has_own = density is None or method.startswith(f"{PRESET}:")
        return from_text(method, **({} if has_own else {"density": density})), None

    def ask(self, session: str) -> None:
        """Take note that this session asks for a run: it may begin, whatever was stopped before.

        What its button stopped stays so: the page cancels that too, which takes a run that waits out of gradio's queue,
        and one that waits for its turn in `make` has an event of its own.
        """
        self._stopped.discard(session)

    def stop(self, session: str) -> None:
        """End what this session runs, at its next step, and whatever of it still waits; so does a closed tab."""
        self._stopped.add(session)
        if session in self._running:
            self._running[session].set()

    def find(self, name: str) -> Path | None:
        """Return the folder of that name with a result of this server, None for any other word of a browser."""
        try:
            known = {path.name: path for path in self.folder.iterdir() if (path / "report.json").is_file()}
        except OSError:  # somebody has emptied the folder for temporary files
            return None
        return known.get(name)

    def shown(self, kept: dict[str, Any] | None) -> Shown:
        """Return what the page shows of a result that the browser has kept, nothing if this server does not know it."""
        folder = self.find(str(kept.get("folder"))) if isinstance(kept, dict) else None
        if folder is None or kept is None:
            return NOTHING
        return str(folder / "dense.mp4"), str(folder / "sparse.mp4"), kept["rows"], str(folder / "report.png"), kept
