"""The command line: `accel COMMAND`, one file each in accel/commands."""

from __future__ import annotations

from typing import Annotated

import typer

from accel.commands import options
from accel.commands.bench import bench
from accel.commands.calibrate import calibrate
from accel.commands.draw import draw
from accel.commands.generate import generate
from accel.commands.info import info
from accel.commands.methods import methods
from accel.commands.models import models
from accel.commands.train_router import train_router

app = typer.Typer(
    help="Faster video diffusion by sparse attention.", no_args_is_help=True, pretty_exceptions_show_locals=False
)
for command in (generate, bench, calibrate, train_router, draw, methods, models, info):
    app.command()(command)


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which version this is.", is_eager=True, callback=options.tell_version),
    ] = False,
) -> None:
    # What stands before any command.
    pass
