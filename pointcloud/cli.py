"""The command line: `pointcloud detect`, `train`, `evaluate` and `info`, what this machine can run."""

from __future__ import annotations

import typer

from pointcloud.commands_detect import detect
from pointcloud.commands_train import evaluate, train

app = typer.Typer(help="Sparse 3D networks on point clouds.", no_args_is_help=True, pretty_exceptions_show_locals=False)
app.command()(detect)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")


@app.command()
def info() -> None:
    """Show devices, versions, and which sparse convolution runs on each device and why."""
    from rich.console import Console
    from rich.table import Table

    from pointcloud.information import environment

    table = Table()
    for column in ("what", "here"):
        table.add_column(column, overflow="fold")
    for row in environment():
        table.add_row(*row)
    Console(markup=False).print(table)  # [points] is no style
