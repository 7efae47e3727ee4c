"""Write events to a file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pointcloud.events.files.arrays import write_npz
from pointcloud.events.files.prophesee import write_dat, write_evt2
from pointcloud.events.record import Events
from pointcloud.files.replacing import replacing

WRITERS = {".npz": write_npz, ".raw": write_evt2, ".dat": write_dat}


def write_events(path: str | Path, events: Events) -> None:
    """Write `.npz`, Prophesee's `.raw` (EVT2) or `.dat`.

    FileNotFoundError without its folder, ValueError on any other name, or if the kind of file cannot hold the events.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path} cannot be written; accepted: {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first")
    with replacing(path) as temporary:
        WRITERS[path.suffix.lower()](temporary, events)
