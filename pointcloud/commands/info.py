"""The command that says what this machine can run."""

from __future__ import annotations


def info() -> None:
    """Show devices, versions, and which sparse convolution runs on each device and why."""
    from rich.console import Console
    from rich.table import Table

    from pointcloud.commands.environment import environment

    table = Table()
    for column in ("what", "here"):
        table.add_column(column, overflow="fold")
    for row in environment():
        table.add_row(*row)
    Console(markup=False, emoji=False).print(table)  # [points] is no style
