"""The command line: `pointcloud detect`, `events`, `sample`, `train`, `evaluate`, `info`: what this machine can run."""

from __future__ import annotations

from typing import Annotated

import typer

from pointcloud.commands.detect import detect
from pointcloud.commands.evaluate_detect import evaluate_detect
from pointcloud.commands.events import events
from pointcloud.commands.info import info
from pointcloud.commands.options import tell_version
from pointcloud.commands.sample import sample
from pointcloud.commands.train_detect import train_detect

app = typer.Typer(help="Sparse 3D networks on point clouds.", no_args_is_help=True, pretty_exceptions_show_locals=False)
train = typer.Typer(help="Train a network on scenes made on the fly.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure a network on scenes it was not trained on.", no_args_is_help=True)


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=tell_version)
    ] = False,
) -> None:
    # What stands before any command.
    pass


@train.callback()
@evaluate.callback()
def _group() -> None:
    # With a callback, a group of one command is still called by the command's name.
    pass


app.command()(detect)
app.command()(events)
app.command()(sample)
app.command()(info)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
train.command("detect")(train_detect)
evaluate.command("detect")(evaluate_detect)
