"""The model families that accel knows, one file each."""

from __future__ import annotations

from typing import Any

from torch import nn

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.wan import WAN

ADAPTERS = (WAN,)


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


def transformers_of(pipeline: Any) -> list[Any]:
    """Return the one or two transformers that denoise in a pipeline."""
    parts = (getattr(pipeline, name, None) for name in ("transformer", "transformer_2"))
    return [part for part in parts if isinstance(part, nn.Module)]
