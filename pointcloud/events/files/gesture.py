"""DVS128 Gesture's folder: recordings `.aedat`, and beside each `NAME_labels.csv` (Amir et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pointcloud.events.files.read import read_events
from pointcloud.events.record import Events

CLASSES = 11


@dataclass(frozen=True)
class Gesture:
    """The events of one gesture, its class from 0 to 10, and the recording that it is from, by which to split."""

    events: Events
    label: int
    recording: str


def read_gestures(path: str | Path) -> Iterator[Gesture]:
    """Yield the gestures of one recording.

    Before the first FileNotFoundError without labels, ValueError on broken ones.
    """
    path = Path(path)
    table = path.with_name(f"{path.stem}_labels.csv")
    if not table.is_file():
        raise FileNotFoundError(f"there is no file {table} with the labels of {path.name}")
    lines = table.read_text(encoding="latin-1").splitlines()[1:]
    rows = [_row(table, line) for line in lines if line.strip()]
    events = read_events(path, size=(128, 128))
    for label, start, end in rows:
        yield Gesture(events.between(start, end), label - 1, path.stem)


def _row(table: Path, line: str) -> tuple[int, int, int]:
    try:
        label, start, end = map(int, line.split(","))
    except ValueError as error:
        raise ValueError(f"{table} must have rows class,start,end of whole numbers, found {line!r}") from error
    if not 1 <= label <= CLASSES or not 0 <= start < end < 1 << 62:
        raise ValueError(f"{table} has {line!r}; classes are 1 to {CLASSES}, and a gesture starts before it ends")
    return label, start, end
