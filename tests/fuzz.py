"""Random calls of the public functions, each by a number: `make fuzz`, or `python -m tests.fuzz NUMBER` for one again.

A call is right or refused in one sentence. What takes longer than a minute, or ends the process, is a failure as well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from tests.accel.random_calls import call_methods
from tests.pointcloud.files.random_calls import call_files
from tests.sparse_kernels.random_calls import call_kernels

CALLS: tuple[Callable[[int], str], ...] = (call_kernels, call_kernels, call_kernels, call_methods, call_files)
SECONDS = 60  # of one call; some hundredths are usual
START = 300  # seconds that a process may take to import everything
MOST_FAILURES = 20


def call(number: int) -> str:
    """Make the call of that number; return its function's name and what became of it."""
    return CALLS[number % len(CALLS)](number)


def make_calls(first: int, count: int, noted: Callable[[int], object] = lambda number: None) -> tuple[list[int], str]:
    """Make so many calls, telling each number first; return those that went wrong, and a line on the others."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # and with it, memory comes full of NaN
    failed, seen = [], Counter()
    try:
        for number in range(first, first + count):
            noted(number)
            try:
                seen[call(number).endswith(": done")] += 1
            except Exception:
                traceback.print_exc()
                print(f"call {number} went wrong; again: python -m tests.fuzz {number}", flush=True)
                failed.append(number)
                if len(failed) == MOST_FAILURES:
                    break
    finally:
        torch.use_deterministic_algorithms(before)
    return failed, f"{seen[True]} right, {seen[False]} refused, {len(failed)} wrong"


def watch(first: int, count: int) -> int:
    """Make the calls in processes of their own, going on after one that ended or hung; return how many did so."""
    broken, end = 0, first + count
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "number"
        while first < end and broken < MOST_FAILURES:
            note.write_text(str(first))
            os.utime(note, (time.time() + START,) * 2)
            command = [sys.executable, "-m", "tests.fuzz", "--note", str(note), "--first", str(first)]
            worker = subprocess.Popen([*command, "--count", str(end - first)])
            while worker.poll() is None and time.time() - note.stat().st_mtime < SECONDS:
                time.sleep(0.2)
            if worker.returncode in (0, 1):
                return broken + worker.returncode
            what = "took longer than a minute" if worker.returncode is None else f"ended by {worker.returncode}"
            worker.kill()
            worker.wait()
            number = int(note.read_text())
            print(f"call {number} {what}; again: python -m tests.fuzz {number}", flush=True)
            broken, first = broken + 1, number + 1
    return broken


def main() -> int:
    """Return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", nargs="?", type=int, help="make this call alone")
    parser.add_argument("--first", type=int, default=int(time.time()), help="number of the first call")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--note", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(2)
    if given.number is None and given.note is None:
        print(f"calls {given.first} to {given.first + given.count - 1}", flush=True)
        return min(1, watch(given.first, given.count))
    note = given.note
    first, count = (given.first, given.count) if given.number is None else (given.number, 1)
    failed, line = make_calls(first, count, lambda number: note and note.write_text(str(number)))
    print(line)
    return min(1, len(failed))


if __name__ == "__main__":
    sys.exit(main())
