"""What is in many recordings: one at a time, one that fails holds up no other, and a run goes on where one stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pointcloud.detection.records import earlier_record, line_about, state_of, write_json
from pointcloud.detection.scans import Scan
from pointcloud.events.files import SUFFIXES, read_events
from pointcloud.events.pictures import MOST_PIXELS, event_frame, shrunk, time_surface, write_animation, write_picture
from pointcloud.events.record import Events

PICTURES = ".png", ".surface.png", ".gif"


def find_recordings(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield the given files, and those in and below the given folders, each with its path in what holds all `paths`.

    That is the deepest folder, so that no two files have one place in an output folder, and each has the same whichever
    way it is spelled. FileNotFoundError, before any file, on a missing path.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
    given = [path.resolve() if path.is_dir() else path.parent.resolve() / path.name for path in paths]
    places = [path if path.is_dir() else path.parent for path in given]
    root = os.path.commonpath(places) if places else ""
    for path in dict.fromkeys(given):
        found = _recordings_below(path) if path.is_dir() else [path]
        yield from ((file, file.relative_to(root)) for file in found)


def _recordings_below(top: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(top):
        below.sort()
        files = (Path(folder, name) for name in sorted(names) if name[0] != ".")
        yield from (file for file in files if file.suffix.lower() in SUFFIXES)


def described(events: Events) -> str:
    """Return one line: how many events, how long, how fast, of which kind and sensor."""
    seconds = events.duration / 1e6
    rate = f"{len(events) / seconds:,.0f} a second" if seconds else "all at once"
    brighter = 100 * float(events.polarity.double().mean()) if len(events) else 0
    return (
        f"{len(events):,} events in {seconds:.3f} s, {rate}, {brighter:.0f} % brighter, "
        f"{events.width} x {events.height} pixels"
    )


def write_pictures(events: Events, target: Path) -> None:
    """Write TARGET.png (the events), TARGET.surface.png (their ages) and TARGET.gif; ValueError as these."""
    target.parent.mkdir(parents=True, exist_ok=True)
    still = shrunk(events, MOST_PIXELS)
    write_picture(target.with_name(f"{target.name}.png"), event_frame(still))
    write_picture(target.with_name(f"{target.name}.surface.png"), time_surface(still))
    write_animation(target.with_name(f"{target.name}.gif"), events, max(33_333, events.duration // 300))


def inspect_files(
    paths: Sequence[Path], output: Path | None, sort: bool, say: Callable[[str], None], fail: Callable[[str], None]
) -> int:
    """Say a line on each recording, and write its pictures and, last, NAME.json to `output`; return how many failed.

    Each of those is said in a line. A recording is not read again if the JSON is of its size and time and of the same
    `sort`, and its pictures are there. ValueError if there is nothing to do, FileNotFoundError on a missing path.
    """
    done = failed = 0
    for path, below in find_recordings(paths):
        scan = Scan(path, (output or Path()) / below)
        try:
            say(f"{path}: {_described_once(scan, sort) if output else described(read_events(path, sort=sort))}")
            done += 1
        except Exception as error:  # whatever a file has done to a reader, the others are not to suffer
            fail(f"failed: {line_about(scan, error)}")
            failed += 1
    if not done + failed:
        raise ValueError(f"no recordings in {', '.join(map(str, paths))}; accepted: {', '.join(SUFFIXES)}")
    return failed


def _described_once(scan: Scan, sort: bool) -> str:
    """Return the line on a recording, of this run or, marked so, of one before; write its files in this one."""
    asked = state_of(scan) | {"sort": sort}
    earlier = earlier_record(scan, asked, *PICTURES)
    if earlier is not None:
        return f"{earlier['events']} (done before)"
    events = read_events(scan.source, sort=sort)
    write_pictures(events, scan.target)
    write_json(scan.output(".json"), asked | {"events": described(events)})
    return described(events)
