"""The tests marked `gpu`, by pytest in a process of its own; a part of `benchmarks.gpu`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import torch
import typer

from benchmarks.rows import Row, origin, write_rows

WORKERS = 6  # processes, where pytest-xdist is installed: most of the time goes into compiling kernels
NEEDED = "pytest", "beartype"
ROOT = Path(__file__).parents[1]


def gpu_files() -> list[Path]:
    """Return the files that hold tests for a GPU: others may need packages that are not there."""
    return [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "\n@pytest.mark.gpu" in file.read_text()]


def run_tests(files: list[Path], report: Path) -> int:
    """Run them, not stopped by a warning of another torch, and return pytest's exit status."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-W",
        "default",
        "-p",
        "no:cacheprovider",
        "--maxfail=10",
    ]
    if torch.cuda.is_available() and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(WORKERS)]
    return subprocess.run([*command, f"--junitxml={report}", *map(str, files)], cwd=ROOT).returncode


def rows_of(report: Path) -> list[Row]:
    """Return a row of counts, and one for each test that failed, from pytest's report."""
    rows, passed, skipped = [], 0, 0
    for test in ElementTree.parse(report).iter("testcase"):
        end = next((child for child in test if child.tag in ("failure", "error")), None)
        if end is not None:
            rows.append({"case": f"{test.get('classname')}.{test.get('name')}", "error": end.get("message")})
        elif test.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    counts = {"passed": passed, "failed": len(rows), "skipped_tests": skipped, "ok": not rows}
    return [{"case": f"{passed} passed, {len(rows)} failed, {skipped} skipped"} | counts, *rows]


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
    seconds: Annotated[float, typer.Option(help="unused: pytest ends when it ends")] = 300.0,
    smoke: Annotated[bool, typer.Option(help="without a GPU all tests are skipped, but collected")] = False,
) -> None:
    """Run and write rows."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        skipped = f"{' and '.join(missing)} missing: pip install -e '.[dev]'"
        rows = [{"case": "gpu tests", "skipped": skipped}]
    else:
        rows = _run()
    if json_file is not None:
        write_rows(json_file, [origin("cpu" if smoke else "cuda") | row for row in rows])


def _run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        status = run_tests(gpu_files(), report)
        if report.is_file():
            return rows_of(report)
        return [{"case": "gpu tests", "error": f"pytest ended with {status}"}]


if __name__ == "__main__":
    typer.run(main)
