"""`accel models`: the transformer classes that accel knows, and what of each becomes sparse."""

from __future__ import annotations

from accel.commands.options import folding_table, plain_console


def models() -> None:
    """Show every transformer class of diffusers that accel knows, what is sparse and what stays dense."""
    from accel.models.adapters import ADAPTERS

    table = folding_table("class", "sparse", "stays dense", "in the command line")
    for adapter in ADAPTERS:
        sparse = "self-attention of what is made" if adapter.reason is None else "nothing"
        stays = adapter.stays if adapter.reason is None else adapter.reason
        for name in adapter.classes:
            table.add_row(name, sparse, stays, "yes" if adapter.sizes else "no")
    plain_console().print(table)
