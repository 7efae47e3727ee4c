"""Recordings damaged at random: events or one ValueError, never a crash, a hang or another error.

The long form: `python -m tests.pointcloud.events.files.test_broken_event_files 2000 .h5`, of these kinds or of all.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pointcloud.events.files import read_events
from tests.pointcloud.events.files.recordings import WRITTEN, some_events, written
from tests.pointcloud.files.test_broken_files import damaged

KINDS = (*WRITTEN, ".npy", ".bin", ".aedat", ".aedat4", ".evt3.raw", ".h5")


def read_damaged(folder: Path, suffix: str, count: int, seed: int = 0) -> int:
    """Return how many of so many damaged files could still be read."""
    generator, path, read = random.Random(seed), folder / f"damaged{suffix}", 0
    whole = written(some_events(), path)
    for number in range(count):
        path.write_bytes(damaged(whole, generator))
        start = time.perf_counter()
        try:
            assert len(read_events(path, sort=generator.random() < 0.5)), f"{suffix} {number}"
            read += 1
        except ValueError as error:
            assert str(path) in str(error), f"{suffix} {number}"
        assert time.perf_counter() - start < 60, f"{suffix} {number}"
    return read


@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_recordings_are_read_or_refused(tmp_path: Path, suffix: str) -> None:
    count = 6 if suffix == ".aedat4" else 100  # it takes a process each
    assert read_damaged(tmp_path, suffix, count) < count


if __name__ == "__main__":
    for kind in sys.argv[2:] or KINDS:
        with tempfile.TemporaryDirectory() as place:
            print(
                kind, read_damaged(Path(place), kind, int(sys.argv[1]), seed=1), "of", sys.argv[1], "read", flush=True
            )
