"""The command line: `pointcloud detect`, `classify`, `segment`, `events`, `sample`, `train`, `evaluate` and `info`."""

from __future__ import annotations

from typing import Annotated

import typer

from pointcloud.commands.detect import detect
from pointcloud.commands.evaluate_clouds import evaluate_segments, evaluate_shapes
from pointcloud.commands.evaluate_detect import evaluate_detect
from pointcloud.commands.evaluate_events import evaluate_events
from pointcloud.commands.events import events
from pointcloud.commands.info import info
from pointcloud.commands.options import tell_version
from pointcloud.commands.predict import classify, segment
from pointcloud.commands.sample import sample
from pointcloud.commands.train_clouds import train_segments, train_shapes
from pointcloud.commands.train_detect import train_detect
from pointcloud.commands.train_events import train_events

app = typer.Typer(help="Sparse 3D networks on point clouds.", no_args_is_help=True, pretty_exceptions_show_locals=False)
train = typer.Typer(help="Train a network on what is made on the fly.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure a network on what it was not trained on.", no_args_is_help=True)


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=tell_version)
    ] = False,
) -> None:
    # What stands before any command.
    pass


app.command()(detect)
app.command()(classify)
app.command()(segment)
app.command()(events)
app.command()(sample)
app.command()(info)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
train.command("detect")(train_detect)
train.command("events")(train_events)
evaluate.command("detect")(evaluate_detect)
evaluate.command("events")(evaluate_events)
train.command("shapes")(train_shapes)
train.command("segments")(train_segments)
evaluate.command("shapes")(evaluate_shapes)
evaluate.command("segments")(evaluate_segments)
