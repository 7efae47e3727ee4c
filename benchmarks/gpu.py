"""All that a GPU must show, in one command and in bounded time: `python -m benchmarks.gpu --out DIR [--smoke]`.

Every part is a process of its own with its share of the time, so that a crash, a lost device or a hang takes no other
part along. Rows go to DIR/PART.json as they are made, everything that is printed to DIR/log.txt, one table to the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import torch
import typer

from benchmarks.rows import Row, origin, show, write_rows

ROOT = Path(__file__).parents[1]
LEAST_SECONDS = 5.0  # a part with less is left out
OWN_SHARE = 0.85  # of a part's time after which it starts no new case; at the whole of it the process is stopped
MOST_STARTS = 6  # of a part whose process dies: each time it goes on after the case that killed it
OUTPUT = 2000  # characters of the end of what a failed part printed, kept in its row
COLUMNS = ("part", "case", "density", "ms_other", "ms_ours", "speedup", "error", "note")
# The first of these fields that a row has stands in the table's column.
FIGURES = {
    "density": ("density",),
    "ms_other": ("ms_dense", "ms_product", "ms_torch", "ms_spconv", "ms_spconv_triton"),
    "ms_ours": ("ms_step", "ms_ours", "ms_per_iteration"),
    "speedup": ("speedup", "fraction_of_product"),
    "error": ("rel_error", "rel_l2_full", "max_error"),
}


@dataclass(frozen=True)
class Part:
    """A module that takes --json, --seconds and --smoke, and its share of the time, in seconds of eight minutes."""

    name: str
    module: str
    share: float
    arguments: tuple[str, ...] = ()


PARTS = (
    Part("parity", "benchmarks.gpu_parity", 60),
    Part("attention", "benchmarks.gpu_kernels", 60, ("attention",)),
    Part("transformers", "benchmarks.transformers", 150),
    Part("tests", "benchmarks.gpu_tests", 80),
    Part("demo", "benchmarks.gpu_demo", 40),
    Part("kernels", "benchmarks.gpu_kernels", 90, ("kmeans", "scores", "sparse_conv", "points")),
)


def run_part(part: Part, out: Path, seconds: float, smoke: bool, log: BinaryIO) -> str:
    """Run a part to its end or that of its time and return what became of it; its file has rows in any case."""
    file, end, outcome = out / f"{part.name}.json", time.monotonic() + seconds, ""
    file.unlink(missing_ok=True)
    start = log.tell()
    for _ in range(MOST_STARTS):
        left = end - time.monotonic()
        options = ["--json", str(file), "--seconds", f"{max(0.0, left - seconds * (1 - OWN_SHARE)):.1f}"]
        command = [sys.executable, "-m", part.module, *part.arguments, *options, *(["--smoke"] if smoke else [])]
        before, outcome = _rows(file), _run(command, environment(smoke), max(1.0, left), log)
        if not outcome.startswith("died") or _rows(file) == before or end - time.monotonic() < LEAST_SECONDS:
            break
    if outcome:
        log.flush()
        printed = Path(log.name).read_bytes()[start:].decode(errors="replace")[-OUTPUT:]
        write_rows(file, [*_rows(file), {"case": "the process", "error": outcome, "output": printed}])
    return outcome or "done"


def environment(smoke: bool) -> dict[str, str]:
    """Return the variables of a part: our packages from this checkout and no hub; a smoke test interprets Triton."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    return os.environ | ours | ({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if smoke else {})


def _run(command: list[str], variables: dict[str, str], seconds: float, log: BinaryIO) -> str:
    """Return nothing if the process ended well, else how it ended."""
    # A group of its own, so that its children end with it, in this session, so that all end with the terminal.
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, preexec_fn=os.setpgrp
    )
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status in (0, 1):
        return "" if status == 0 else "failed with exit status 1"
    return f"died with exit status {status}"


def _rows(file: Path) -> list[Row]:
    return json.loads(file.read_text()) if file.is_file() else []


def table_row(part: str, row: Row) -> Row:
    """Return a row's figures under the names of the table, and whether it is one of a failure."""
    line: Row = {"part": part, "case": row["case"], "failed": row.get("ok") is False or row.get("error") is not None}
    for column, names in FIGURES.items():
        line[column] = next((row[name] for name in names if row.get(name) is not None), None)
    notes = (row.get("error"), row.get("skipped"), "WRONG" if row.get("ok") is False else None, row.get("note"))
    line["note"] = "; ".join(str(note)[:80] for note in notes if note is not None) or None
    return line


def run_parts(parts: tuple[Part, ...], out: Path, minutes: float, smoke: bool) -> list[Row]:
    """Run the parts, each with its share of what is left of the time, and return all rows of the table."""
    end, lines = time.monotonic() + minutes * 60, []
    with (out / "log.txt").open("wb") as log:
        for index, part in enumerate(parts):
            start = time.monotonic()
            seconds = (end - start) * part.share / sum(other.share for other in parts[index:])
            if seconds < LEAST_SECONDS:
                write_rows(out / f"{part.name}.json", [{"case": "the process", "skipped": "no time was left"}])
                outcome = "left out: no time"
            else:
                outcome = run_part(part, out, seconds, smoke, log)
            made = [table_row(part.name, row) for row in _rows(out / f"{part.name}.json")]
            failed = sum(line["failed"] for line in made)
            spent = f"{time.monotonic() - start:.0f} s of {max(0.0, seconds):.0f} s"
            typer.echo(f"{part.name}: {outcome}, {len(made)} rows, {failed} failed, {spent}")
            lines += made
    return lines


def condensed(lines: list[Row]) -> list[Row]:
    """Return the table's rows, of those that are right and have an error alone the worst of each kernel and type."""
    worst: dict[Any, Row] = {}
    for index, line in enumerate(lines):
        alone = not line["failed"] and line["error"] is not None and line["ms_ours"] is None
        key = tuple(line["case"].split(", ")[:2]) if alone else index
        if key not in worst or line["error"] > worst[key]["error"]:
            worst[key] = line
    return list(worst.values())


def main(
    out: Annotated[Path, typer.Option(help="folder of the JSON files and the log")],
    minutes: Annotated[float, typer.Option(help="all parts together; what no longer fits is left out and said")] = 8.0,
    only: Annotated[str, typer.Option(help="parts, with commas between them; default: all")] = "",
    smoke: Annotated[bool, typer.Option(help="tiny shapes on the CPU, Triton interpreted: does it all run?")] = False,
) -> None:
    """Check and time everything on a CUDA device; exit status 1 if anything failed or is wrong."""
    names = [part.name for part in PARTS]
    chosen = [name.strip() for name in only.split(",")] if only else names
    if unknown := ", ".join(sorted(set(chosen) - set(names))):
        raise typer.BadParameter(f"unknown part {unknown}; accepted: {', '.join(names)}", param_hint="--only")
    if not smoke and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device; try it on the CPU with --smoke", param_hint="--smoke")
    out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = origin("cpu" if smoke else "cuda")
    typer.echo(", ".join(f"{name} {value}" for name, value in facts.items()))
    lines = run_parts(tuple(part for part in PARTS if part.name in chosen), out, minutes, smoke)
    show(condensed(lines), COLUMNS)
    typer.echo(f"{len(lines)} rows, {sum(line['failed'] for line in lines)} failed; whole rows in {out}")
    if any(line["failed"] for line in lines):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
