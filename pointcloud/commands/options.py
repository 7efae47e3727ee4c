"""Options that commands share, and how a command ends that cannot do what it was asked."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Layout = Annotated[
    str | None,
    typer.Option(help="rows of .bin files: kitti, nuscenes or waymo; default: nuscenes for .pcd.bin, else kitti"),
]
Spikes = Annotated[bool, typer.Option("--spikes", help="run on spikes of 0 and 1 in place of integers")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice")]
MOST_SEED = 2**32 - 1  # training makes one of it for each step, of up to the 64 bits that torch takes


def find_device(name: str, on_spconv: bool = False) -> str:
    """Return what a device's name stands for; `auto` is a CPU where spconv, if it is needed, has no CUDA kernels.

    ValueError if a device is not here, or cannot run spconv.
    """
    import torch

    from pointcloud.commands.environment import CUDA_WHEEL, spconv_wheel

    if name == "auto":
        if on_spconv and torch.cuda.is_available() and spconv_wheel() != "CUDA":
            print(f"on the CPU, for spconv has no CUDA kernels here: {CUDA_WHEEL}", file=sys.stderr)
            return "cpu"
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
            raise RuntimeError("torch knows more devices, on which nothing here runs")
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not here; accepted: auto, cpu, cuda or cuda:N") from error
    if on_spconv and name != "cpu" and (wheel := spconv_wheel()) != "CUDA":
        raise ValueError(f"spconv does not run on {name} here (its wheel: {wheel}); give --device cpu, or {CUDA_WHEEL}")
    return name


def check_finite(**options: float | None) -> None:
    """Raise ValueError on an option that is NaN or infinite: NaN lies in every range, as click compares it."""
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; give a finite number")


def check_seed(seed: int) -> None:
    """Raise ValueError on a seed that is below 0 or too large."""
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"--seed is {seed}; give a whole number from 0 to {MOST_SEED}")


def set_threads(count: int | None) -> None:
    """Let torch use so many CPU threads; None leaves it its choice."""
    import torch

    if count is not None:
        torch.set_num_threads(count)


def tell_version(asked: bool) -> bool:
    """Print the version and end, if it was asked for."""
    import importlib.metadata

    if asked:
        typer.echo(f"visual-accel {importlib.metadata.version('visual-accel')}")
        raise typer.Exit()
    return asked


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn input that cannot be used, or a missing package, into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {_line_about(error)}", err=True)
        raise typer.Exit(2) from error


def _line_about(error: Exception) -> str:
    """Return an error's message in one line; of one in a worker, which is a whole traceback, the end."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "spconv":
        from pointcloud.commands.environment import SPCONV

        return f"this needs spconv: {SPCONV}"
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if re.match(r"Caught \w+ in DataLoader worker process", lines[0]):
        return re.sub(r"^[\w.]+: ", "", lines[-1])
    return " ".join(lines)
