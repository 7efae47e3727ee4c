"""Classes of many files: one cloud at a time, every output whole or absent, and a run goes on where one stopped."""

from __future__ import annotations

import importlib.metadata
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from pointcloud.classification.model import CloudModel
from pointcloud.classification.pictures import colored, draw_cloud
from pointcloud.detection.records import earlier_record, line_about, say, state_of, write_json
from pointcloud.detection.scans import SUMMARY, Scan, find_scans
from pointcloud.files import SUFFIXES, check_layout, read_points, write_points


@dataclass
class Predictions:
    """How many files were done, done before or failed (with the reason), and how many each class was found in."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    classes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        found = ", ".join(f"{count} {name}" for name, count in sorted(self.classes.items())) or "nothing"
        return f"{self.done} done, {self.skipped} done before, {len(self.failed)} failed; found: {found}"


def predict_files(
    paths: Sequence[Path],
    model: CloudModel,
    output: Path,
    *,
    name: str,
    pictures: bool = True,
    layout: str | None = None,
) -> Predictions:
    """Write NAME.ply (coloured, with labels), NAME.png and, last, NAME.json for every file, also of folders.

    A file is skipped if its JSON is of its size and time and of the same weights and layout, which is that of `.bin`
    files, as `read_points` takes it. One that fails is said in a line on stderr, and the rest goes on. At the end
    summary.json is written. ValueError if there is nothing to do or no such layout, FileNotFoundError if a path does
    not exist.
    """
    check_layout(layout)
    total = sum(1 for _ in find_scans(paths, output))
    if total == 0:
        raise ValueError(f"no point clouds in {', '.join(map(str, paths))}; accepted: {', '.join(SUFFIXES)}")
    output.mkdir(parents=True, exist_ok=True)
    versions = {package: importlib.metadata.version(package) for package in ("visual-accel", "torch")}
    facts = {"model": name, "weights": model.fingerprint(), "layout": layout}
    written = (".ply", ".png") if pictures else (".ply",)
    summary, console = Predictions(), Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for scan in progress.track(find_scans(paths, output), total, description="clouds"):
            try:
                asked = facts | state_of(scan)
                earlier = earlier_record(scan, asked, *written)
                record = earlier or _predict(scan, model, asked | {"versions": versions}, pictures)
                summary.done, summary.skipped = summary.done + (not earlier), summary.skipped + bool(earlier)
                summary.classes.update(record["found"])
            except Exception as error:  # whatever a file has done to a reader, the others are not to suffer
                summary.failed[str(scan.source)] = line = line_about(scan, error)
                say(console, f"failed: {line}")
    write_json(output / f"{SUMMARY}.json", {**facts, "versions": versions, **vars(summary)})
    return summary


def _predict(scan: Scan, model: CloudModel, asked: dict[str, Any], pictures: bool) -> dict[str, Any]:
    """Write everything about one file; return its record."""
    classes, start = model.config.classes, time.perf_counter()
    cloud = read_points(scan.source, asked["layout"])
    probabilities = model.predict(cloud).cpu()
    best = probabilities.argmax(1)
    if model.config.task == "shapes":
        score = float(probabilities.max())
        title = f"{classes[int(best)]} {score:.2f}"
        found, labels = [classes[int(best)]], best.expand(len(cloud)).contiguous()
        shares = zip(classes, probabilities[0].tolist(), strict=True)
        about = {"class": found[0], "score": round(score, 4), "scores": {name: round(x, 4) for name, x in shares}}
    else:
        counts = torch.bincount(best, minlength=len(classes)).tolist()
        about = {"points_per_class": {name: count for name, count in zip(classes, counts, strict=True) if count}}
        found, labels, title = list(about["points_per_class"]), best, scan.source.name
    scan.target.parent.mkdir(parents=True, exist_ok=True)
    write_points(scan.output(".ply"), colored(cloud, labels, len(classes)))
    if pictures:
        draw_cloud(cloud, labels, classes, title, scan.output(".png"))
    record = {"points": len(cloud), "origin": cloud.origin, "seconds": round(time.perf_counter() - start, 6)}
    record = asked | record | {"found": found} | about
    write_json(scan.output(".json"), record)
    return record
