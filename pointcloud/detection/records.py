"""What is written about a file, by this run or one before, and the line on one that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from pointcloud.detection.scans import Scan
from pointcloud.files import replacing


def state_of(scan: Scan) -> dict[str, Any]:
    """Return what tells a file from another that takes its place, whichever is the older one."""
    about = scan.source.stat()
    return {"file": str(scan.source), "bytes": about.st_size, "modified": about.st_mtime_ns}


def earlier_record(scan: Scan, asked: dict[str, Any], *suffixes: str) -> dict[str, Any] | None:
    """Return the record of an earlier run that was asked the same and wrote files with these suffixes, or None.

    ValueError if another file has its place.
    """
    try:
        record = json.loads(scan.output(".json").read_text())
    except (FileNotFoundError, ValueError):  # it is missing, or no JSON
        return None
    if record.get("file") != asked["file"]:
        raise ValueError(
            f"{scan.output('.json')} is about {record.get('file')}, not {scan.source}; give another output folder"
        )
    whole = all(scan.output(suffix).is_file() for suffix in suffixes)
    return record if whole and _with_layout(record).items() >= asked.items() else None


def _with_layout(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as today's, which say how `.bin` files were read; those before name no layout."""
    known = {"layout": None, **record}
    return {**known, "inputs": {"layout": None, **record["inputs"]}} if "inputs" in record else known


def say(console: Console, line: str) -> None:
    """Print a line as it is, without markup or breaks."""
    console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def line_about(scan: Scan, error: Exception) -> str:
    """Return one line that names the file and what is wrong."""
    lines = str(error).splitlines() or ["failed"]
    message = lines[0] if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {lines[0]}"
    return message if str(scan.source) in message else f"{scan.source}: {message}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON without NaN, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
