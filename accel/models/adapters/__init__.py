"""What accel knows of each model family: data, no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel.attention.call import Geometry
from accel.models.adapters import wan


@dataclass(frozen=True)
class Adapter:
    """A model family: its transformer classes, its video self-attention modules, and how to read the grid."""

    classes: tuple[str, ...]
    self_attention: Callable[[nn.Module], dict[str, nn.Module]]
    geometry: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Geometry | None]


ADAPTERS = (Adapter(wan.CLASSES, wan.self_attention, wan.geometry),)


def supported_classes() -> tuple[str, ...]:
    """Return the names of the transformer classes that can be accelerated."""
    return tuple(name for adapter in ADAPTERS for name in adapter.classes)


def adapter_for(transformer: nn.Module) -> Adapter:
    """Return the adapter of a transformer; ValueError names the supported classes."""
    name = type(transformer).__name__
    for adapter in ADAPTERS:
        if name in adapter.classes:
            return adapter
    raise ValueError(f"{name} is not a supported video transformer; accepted: {', '.join(supported_classes())}")
