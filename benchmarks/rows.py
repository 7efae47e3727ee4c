"""What every benchmark does with its rows: name the machine, print a table, write JSON."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from accel.workbench.facts import device_name


def origin(device: str) -> dict[str, Any]:
    """Return the fields that say when and where a row was measured."""
    return {
        "date": date.today().isoformat(),
        "device": device_name(torch.device(device)),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def show(rows: list[dict[str, Any]], columns: tuple[str, ...], json_file: Path | None) -> None:
    """Print the chosen columns and, if a file is given, write whole rows there."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in rows:
        table.add_row(*(f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in columns))
    Console().print(table)
    if json_file is not None:
        temporary = json_file.with_name(json_file.name + ".tmp")
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(temporary, json_file)
