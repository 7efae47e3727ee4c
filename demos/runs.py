"""The runs of the page: stopped by those who started them, and found again by their folder."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel.errors import InputError
from accel.methods.registry import from_text
from accel.workbench.comparison import Comparison, compare
from accel.workbench.generation import CallOptions
from accel.workbench.loading import LoadedPipeline
from accel.workbench.reporting import write_comparison

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
    ) -> tuple[Comparison, Path]:
        """Return what two generations gave, and the folder of its files.

        `method` is a name with options, as NAME:OPTION=VALUE. InputError or ValueError on bad input, Stopped after
        `stop` of this session: at the next step, or at once if that was while it waited for others.
        """
        if not prompt.strip():
            raise InputError("The prompt is empty; say what the video shows.")
        stop = self._running[session] = threading.Event()
        if session in self._stopped:  # looked at second, so that no stop falls in between
            raise Stopped

        def report(share: float, message: str) -> None:
            if stop.is_set():
                raise Stopped
            progress(share, message)

        chosen = from_text(method, **({} if density is None else {"density": density}))
        comparison = compare(self.loaded, chosen, prompt.strip(), progress=report, **options)
        written = Path(tempfile.mkdtemp(dir=self.folder))
        write_comparison(comparison, written)
        return comparison, written

    def ask(self, session: str) -> None:
        """Take note that this session asks for a run: it may begin, whatever was stopped before."""
        self._stopped.discard(session)

    def stop(self, session: str) -> None:
        """End what this session runs, at its next step, and whatever of it still waits; so does a closed tab."""
        self._stopped.add(session)
        if session in self._running:
            self._running[session].set()

    def find(self, name: str) -> Path | None:
        """Return the folder of that name with a result of this server, None for any other word of a browser."""
        known = {path.name: path for path in self.folder.iterdir() if (path / "report.json").is_file()}
        return known.get(name)

    def shown(self, kept: dict[str, Any] | None) -> Shown:
        """Return what the page shows of a result that the browser has kept, nothing if this server does not know it."""
        folder = self.find(str(kept.get("folder"))) if isinstance(kept, dict) else None
        if folder is None or kept is None:
            return NOTHING
        return str(folder / "dense.mp4"), str(folder / "sparse.mp4"), kept["rows"], str(folder / "report.png"), kept
