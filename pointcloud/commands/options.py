"""Options that commands share, and how a command ends that cannot do what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Spikes = Annotated[bool, typer.Option("--spikes", help="run on spikes of 0 and 1 in place of integers")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice")]


def find_device(name: str) -> str:
    """Return what a device's name stands for; ValueError if it is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not here; accepted: auto, cpu, cuda or cuda:N") from error
    return name


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
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
