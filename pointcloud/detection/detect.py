"""Detections in many files: one cloud at a time, every output whole or absent, and a run goes on where one stopped."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from pointcloud.boxes import Detections
from pointcloud.detection.detector import Detector
from pointcloud.detection.inputs import Inputs
from pointcloud.detection.pictures import colored, draw
from pointcloud.detection.scans import SUMMARY, Scan, find_scans
from pointcloud.detection.summary import STAGES, Summary
from pointcloud.files import SUFFIXES, read_points, replacing, write_points

FIELDS = ("x", "y", "z", "length", "width", "height", "heading")


def detect_files(
    paths: Sequence[Path],
    detector: Detector,
    output: Path,
    *,
    model: str,
    threshold: float | None = None,
    inputs: Inputs | None = None,
    pictures: bool = True,
) -> Summary:
    """Write NAME.ply (coloured), NAME.png and, last, NAME.json for every file and every file of every folder.

    A file is skipped if its JSON is of its size and time, of the same weights, threshold and inputs. One that fails is
    said in a line on stderr, and the rest goes on; so is the first of each kind of note. At the end summary.json is
    written. ValueError if there is nothing to do, FileNotFoundError if a path does not exist.
    """
    total = sum(1 for _ in find_scans(paths, output))
    if total == 0:
        raise ValueError(f"no point clouds in {', '.join(map(str, paths))}; accepted: {', '.join(SUFFIXES)}")
    output.mkdir(parents=True, exist_ok=True)
    versions = {package: importlib.metadata.version(package) for package in ("visual-accel", "torch")}
    inputs = inputs or Inputs()
    facts = {"model": model, "weights": detector.fingerprint(), "threshold": threshold, "inputs": asdict(inputs)}
    summary, start, console = Summary(), time.perf_counter(), Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for scan in progress.track(find_scans(paths, output), total, description="scans"):
            try:
                asked = facts | _state(scan)
                earlier = _earlier(scan, asked, pictures)
                record = earlier or _detect(scan, detector, inputs, asked | {"versions": versions}, pictures)
                for note in summary.add(record, new=earlier is None):
                    _say(console, f"warning: {scan.source}: {note} (other such files are counted)")
            except Exception as error:  # whatever a file has done to a reader, the others are not to suffer
                summary.failed[str(scan.source)] = line = _line(scan, error)
                _say(console, f"failed: {line}")
    summary.elapsed = time.perf_counter() - start
    _write_json(output / f"{SUMMARY}.json", {**facts, "versions": versions, **summary.report()})
    return summary


def _state(scan: Scan) -> dict[str, Any]:
    """Return what tells a file from another that takes its place, whichever is the older one."""
    about = scan.source.stat()
    return {"file": str(scan.source), "bytes": about.st_size, "modified": about.st_mtime_ns}


def _earlier(scan: Scan, asked: dict[str, Any], pictures: bool) -> dict[str, Any] | None:
    """Return the record of an earlier run that was asked the same; ValueError if another file has its place."""
    try:
        record = json.loads(scan.output(".json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if record.get("file") != asked["file"]:
        raise ValueError(
            f"{scan.output('.json')} is about {record.get('file')}, not {scan.source}; give another output folder"
        )
    whole = scan.output(".ply").is_file() and (scan.output(".png").is_file() or not pictures)
    return record if whole and record.items() >= asked.items() else None


def _detect(scan: Scan, detector: Detector, inputs: Inputs, asked: dict[str, Any], pictures: bool) -> dict[str, Any]:
    """Write everything about one file; return its record."""
    classes, times = detector.config.head.classes, [time.perf_counter()]
    cloud = read_points(scan.source)
    times.append(time.perf_counter())
    prepared, notes = inputs.prepare(cloud, detector.config.attributes)
    found = inputs.restore(detector.detect(prepared, asked["threshold"]).cpu())
    times.append(time.perf_counter())
    scan.target.parent.mkdir(parents=True, exist_ok=True)
    write_points(scan.output(".ply"), colored(cloud, found))
    if pictures:
        with replacing(scan.output(".png")) as temporary:
            draw(cloud, found, temporary, classes)
    times.append(time.perf_counter())
    seconds = {stage: round(end - start, 6) for stage, start, end in zip(STAGES, times, times[1:], strict=False)}
    record = {"points": len(cloud), "origin": cloud.origin, "seconds": seconds, "notes": notes}
    record = asked | record | {"detections": _rows(found, classes)}
    _write_json(scan.output(".json"), record)
    return record


def _rows(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return each detection with named fields: metres from the cloud's origin, and radians."""
    boxes, scores, labels = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
    return [
        {"class": classes[label], "score": round(score, 4)}
        | {name: round(value, 4) for name, value in zip(FIELDS, box, strict=True)}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _line(scan: Scan, error: Exception) -> str:
    """Return one line that names the file and what is wrong."""
    lines = str(error).splitlines() or ["failed"]
    message = lines[0] if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {lines[0]}"
    return message if str(scan.source) in message else f"{scan.source}: {message}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
