"""A process with Triton's interpreter, in which test files run as scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

INTERPRETER = """
import contextlib, io, runpy, sys, torch
torch.use_deterministic_algorithms(True)  # memory comes poisoned there, as in the tests here
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(line.strip(), run_name="__main__")
    print(said.getvalue().splitlines()[-1], flush=True)
"""


class Interpreter:
    """A process in which kernels are interpreted, which Triton decides at import, and which runs test files as scripts.

    A file runs once for all whose folder `shared` is the same.
    """

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared
        self.process: subprocess.Popen[str] | None = None

    def said(self, file: str) -> dict[str, Any]:
        """Return what a test file prints last when it is run as a script, as `report` does."""
        kept = self.shared / ("-".join(Path(file).parts[-3:]) + ".json")
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                kept.write_text(self._run(file))
            return json.loads(kept.read_text())

    def _run(self, file: str) -> str:
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin and self.process.stdout
        print(file, file=self.process.stdin, flush=True)
        said = self.process.stdout.readline()
        assert said, f"{file} ended the interpreter: {(self.folder / 'interpreter.txt').read_text()}"
        return said

    def _start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(self.folder / "interpreter.txt", "w") as errors:
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", INTERPRETER]
            return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True)

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.communicate()
