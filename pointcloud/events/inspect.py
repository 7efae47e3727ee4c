"""What is in many recordings: one at a time, and one that fails holds up no other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pointcloud.events.files import SUFFIXES, read_events
from pointcloud.events.pictures import event_frame, time_surface, write_animation, write_picture
from pointcloud.events.record import Events


def find_recordings(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield the given files, then those in and below the given folders, each with the path below its folder.

    FileNotFoundError on a missing path.
    """
    for path in paths:
        if path.is_dir():
            for folder, below, names in os.walk(path):
                below.sort()
                files = (Path(folder, name) for name in sorted(names) if name[0] != ".")
                yield from ((file, file.relative_to(path)) for file in files if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            yield path, Path(path.name)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")


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
    write_picture(target.with_name(f"{target.name}.png"), event_frame(events))
    write_picture(target.with_name(f"{target.name}.surface.png"), time_surface(events))
    write_animation(target.with_name(f"{target.name}.gif"), events, max(33_333, events.duration // 300))


def inspect_files(
    paths: Sequence[Path], output: Path | None, sort: bool, say: Callable[[str], None], fail: Callable[[str], None]
) -> int:
    """Say a line on each recording, and write its pictures to `output`; return how many failed, each said in a line.

    ValueError if there is nothing to do, FileNotFoundError on a missing path.
    """
    done = failed = 0
    for path, below in find_recordings(paths):
        try:
            events = read_events(path, sort=sort)
            if output is not None:
                write_pictures(events, output / below)
            say(f"{path}: {described(events)}")
            done += 1
        except Exception as error:  # whatever a file has done to a reader, the others are not to suffer
            line = (str(error).splitlines() or [type(error).__name__])[0]
            fail(f"failed: {line}" if str(path) in line else f"failed: {path}: {line}")
            failed += 1
    if not done + failed:
        raise ValueError(f"no recordings in {', '.join(map(str, paths))}; accepted: {', '.join(SUFFIXES)}")
    return failed
