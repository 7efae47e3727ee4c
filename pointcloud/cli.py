"""The command line: `pointcloud info` tells what this machine can run."""

from __future__ import annotations

import typer

app = typer.Typer(help="Sparse 3D networks on point clouds.", no_args_is_help=True, pretty_exceptions_show_locals=False)


@app.callback()
def commands() -> None:
    """Sparse 3D networks on point clouds."""  # Without a callback, typer would make a lone command nameless.


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
