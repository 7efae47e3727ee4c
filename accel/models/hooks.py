"""Hooks of diffusers on modules, where they are looked at and not changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def hooks_of(modules: Iterable[nn.Module]) -> Iterator[tuple[str, Any]]:
    """Go through the names and hooks that diffusers has registered on some modules."""
    for module in modules:
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            yield from registry.hooks.items()
