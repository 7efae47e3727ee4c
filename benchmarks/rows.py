"""What every benchmark does with its rows: name the machine, print a table, write JSON."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
WIDTH = 160  # columns of text where there is no terminal


def origin(device: str) -> Row:
    """Return the fields that say when and where a row was measured."""
    import torch

    return {
        "date": date.today().isoformat(),
        "device": processor(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def processor(device: str) -> str:
    """Return the name of the graphics card or, where Linux tells it, of the processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@functools.cache
def installed(library: str, module: str) -> bool:
    """Return whether a library to compare with is there, and say how to get it if not."""
    if importlib.util.find_spec(module) is not None:
        return True
    typer.echo(f'{library} is not installed, its times are left out; pip install -e ".[bench]" brings it', err=True)
    return False


def show(rows: Sequence[Row], columns: Sequence[str], json_file: Path | None = None) -> None:
    """Print the chosen columns and, if a file is given, write whole rows there."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in columns))
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH).print(table)
    if json_file is not None:
        write_rows(json_file, rows)


def write_rows(json_file: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON, replacing the file at once; infinity and NaN, which JSON has not, become words."""
    temporary = json_file.with_name(json_file.name + ".tmp")
    finite = [{name: _finite(value) for name, value in row.items()} for row in rows]
    temporary.write_text(json.dumps(finite, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, json_file)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
