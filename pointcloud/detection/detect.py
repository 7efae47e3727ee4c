"""Detections in many files: one cloud at a time, every output whole or absent, and a run goes on where one stopped."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from pointcloud.boxes import Detections
from pointcloud.detection.detector import Detector
from pointcloud.detection.inputs import Inputs, outside_note
from pointcloud.detection.pictures import colored, draw
from pointcloud.detection.records import earlier_record, line_about, say, state_of, write_json
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
    written = (".ply", ".png") if pictures else (".ply",)
    summary, start, console = Summary(), time.perf_counter(), Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for scan in progress.track(find_scans(paths, output), total, description="scans"):
            try:
                asked = facts | state_of(scan)
                earlier = earlier_record(scan, asked, *written)
                record = earlier or _detect(scan, detector, inputs, asked | {"versions": versions}, pictures)
                for note in summary.add(record, new=earlier is None):
                    say(console, f"warning: {scan.source}: {note} (other such files are counted)")
            except Exception as error:  # whatever a file has done to a reader, the others are not to suffer
                summary.failed[str(scan.source)] = line = line_about(scan, error)
                say(console, f"failed: {line}")
    summary.elapsed = time.perf_counter() - start
    write_json(output / f"{SUMMARY}.json", {**facts, "versions": versions, **summary.report()})
    return summary


def _detect(scan: Scan, detector: Detector, inputs: Inputs, asked: dict[str, Any], pictures: bool) -> dict[str, Any]:
    """Write everything about one file; return its record."""
    classes, times = detector.config.head.classes, [time.perf_counter()]
    cloud = read_points(scan.source, inputs.layout)
    times.append(time.perf_counter())
    prepared, notes = inputs.prepare(cloud, detector.config.attributes)
    notes |= outside_note(prepared.xyz, detector.config.grid)
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
    guessed = inputs.guess(cloud, detector.config.attributes)
    record = asked | record | {"full_intensity": guessed, "detections": _rows(found, classes)}
    write_json(scan.output(".json"), record)
    return record


def _rows(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return each detection with named fields: metres from the cloud's origin, and radians."""
    boxes, scores, labels = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
    return [
        {"class": classes[label], "score": round(score, 4)}
        | {name: round(value, 4) for name, value in zip(FIELDS, box, strict=True)}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]
