"""What several commands take, and how they say that something cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accel.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Model = Annotated[str | None, typer.Option(help="pipeline folder or Hugging Face id; default: the embedded shapes-wan")]
Steps = Annotated[int | None, typer.Option(help="denoising steps")]
Frames = Annotated[int | None, typer.Option(help="frames of the video")]
Height = Annotated[int | None, typer.Option(help="height in pixels")]
Width = Annotated[int | None, typer.Option(help="width in pixels")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")]
OUT_OF_MEMORY = (
    "make the video smaller (--frames, --height, --width); accel generate can also offload (--offload model or group) "
    "and quantise (--quantize int8)"
)
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: torch's choice")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn input that cannot be used into one line on stderr and exit code 2, and each warning into one line."""
    try:
        with _one_line_warnings():
            yield
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here for its name
            raise
        typer.echo(f"error: {str(error).splitlines()[0]} {OUT_OF_MEMORY}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Say what is warned of once, without the file and line that a user of commands has no use for."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            typer.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def tell_version(asked: bool) -> bool:
    """Print the version and end, if it was asked for."""
    if asked:
        typer.echo(f"visual-accel {installed_version('visual-accel')}")
        raise typer.Exit()
    return asked


def installed_version(package: str) -> str:
    """Return the version of an installed package, or that it is not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def plain_console() -> Console:
    """Return a console that prints names as they are: no styles of [words], no pictures of :words:."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def set_threads(threads: int | None) -> None:
    """Let torch use that many threads of the CPU; InputError below one."""
    import torch

    if threads is None:
        return
    if threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    torch.set_num_threads(threads)


def folding_table(*columns: str) -> Table:
    """Return a table that breaks long words instead of cutting them."""
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_written(files: list[Path]) -> None:
    """Say what was written."""
    for file in files:
        typer.echo(f"wrote {file}")
