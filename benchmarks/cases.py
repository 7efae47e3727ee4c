"""Cases that fail alone: each gives rows of one JSON file, and what goes wrong with it is a row as well."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.rows import Row, write_rows

UNFINISHED = "did not finish"
DEVICE_LOST = 70  # exit status: the CUDA context is lost, and with it the process, but not the cases that follow


class Cases:
    """Runs cases until the time is over, each under its name; a second run leaves out what the file has already.

    All rows have the `setting`. Exits with a line where the file has rows with another one.
    """

    def __init__(self, file: Path | None, device: str, seconds: float, setting: Row | None = None):
        self.file, self.device, self.end = file, device, time.monotonic() + seconds
        self.setting = setting or {}
        self.rows: list[Row] = json.loads(file.read_text()) if file is not None and file.is_file() else []
        for name, value in self.setting.items():
            others = {row[name] for row in self.rows if name in row} - {value}
            if others:
                sys.exit(f"{file} has rows with {name} {others.pop()}, not {value}: give another --json")

    def run(self, name: str, measure: Callable[[], Row | Sequence[Row]]) -> None:
        """Add what `measure` returns, or its error; a case that kills the process leaves a row that says so."""
        if any(row["case"] == name for row in self.rows):
            return
        if time.monotonic() > self.end:
            return self._add(name, [{"skipped": "no time was left"}])
        before = self.rows
        self._add(name, [{"error": UNFINISHED}])
        start = time.monotonic()
        try:
            made = measure()
            rows = [made] if isinstance(made, dict) else list(made)
        except Exception as error:
            traceback.print_exc()
            rows = [{"error": f"{type(error).__name__}: {error}".splitlines()[0]}]
        self.rows = before
        self._add(name, [row | {"case_seconds": time.monotonic() - start} for row in rows])
        self._free()

    def _add(self, name: str, rows: Sequence[Row]) -> None:
        self.rows = [*self.rows, *({"case": name} | self.setting | row for row in rows)]
        if self.file is not None:
            write_rows(self.file, self.rows)

    def _free(self) -> None:
        """Leave the memory to the next case, or the process to its driver when the device answers no more."""
        gc.collect()
        if self.device.startswith("cuda"):
            import torch  # where it is needed: a part that dies starts again, and torch takes seconds

            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            except RuntimeError as error:
                print(f"the device is lost: {error}", file=sys.stderr, flush=True)
                sys.exit(DEVICE_LOST)
