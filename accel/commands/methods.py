"""`accel methods`: which methods and caches there are, and their options."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer


def methods() -> None:
    """List methods and caches with their options, as --method and --cache take them: NAME:OPTION=VALUE."""
    from accel.methods.preset import Preset
    from accel.methods.registry import METHODS, PRESET
    from accel.workbench import their_caches

    typer.echo(f"--method {PRESET} (the default): {_about(Preset)}")
    for title, kinds in (("--method", METHODS), ("--cache", their_caches.registry.POLICIES)):
        for name, kind in kinds.items():
            typer.echo(f"{title} {name}: {_about(kind)}")
            typer.echo(f"    {_options(kind)}")
    names = ", ".join(f"{their_caches.PREFIX}{name}" for name in their_caches.DEFAULTS)
    typer.echo(f"--cache {names}: those of diffusers, with its options")


def _about(kind: Any) -> str:
    """Return the first line of a dataclass's description."""
    return (kind.__doc__ or "").strip().splitlines()[0]


def _options(kind: Any) -> str:
    """Return a dataclass's options with their defaults, but for those that no text can give."""
    return ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(kind) if field.repr)
