"""The model families that accel knows, one file each."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

from accel.models.adapters import (
    cogvideox,
    cosmos,
    helios,
    hunyuan,
    images,
    kandinsky,
    ltx,
    minimax_h3,
    mochi,
    motif,
    wan,
)
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.left_dense import LEFT_DENSE

ADAPTERS = (
    wan.WAN,
    wan.WAN_RELATED,
    wan.VACE,
    wan.ANIMATE,
    wan.ANYFLOW,
    hunyuan.HUNYUAN_VIDEO,
    hunyuan.HUNYUAN_VIDEO_15,
    hunyuan.FRAMEPACK,
    cogvideox.COGVIDEOX,
    cogvideox.CONSISID,
    cogvideox.EASYANIMATE,
    ltx.LTX,
    ltx.LTX_2,
    mochi.MOCHI,
    mochi.ALLEGRO,
    mochi.LATTE,
    cosmos.COSMOS,
    kandinsky.KANDINSKY_5,
    kandinsky.KANDINSKY_6,
    minimax_h3.MINIMAX_H3,
    helios.HELIOS,
    motif.MOTIF,
    images.FLUX,
    images.FLUX_2,
    images.QWEN_IMAGE,
    images.SD3,
    images.Z_IMAGE,
    hunyuan.HUNYUAN_IMAGE,
    *LEFT_DENSE,
)


def supported_classes() -> tuple[str, ...]:
    """Return the names of the transformer classes that can be accelerated."""
    return tuple(name for adapter in ADAPTERS if adapter.reason is None for name in adapter.classes)


def generated_classes() -> tuple[str, ...]:
    """Return those of which the command line makes videos."""
    return tuple(name for adapter in ADAPTERS if adapter.sizes is not None for name in adapter.classes)


def adapter_for(transformer: nn.Module) -> Adapter:
    """Return the adapter of a transformer; ValueError as `adapter_of` raises it, or for one that is wrapped."""
    name = type(transformer).__name__
    if hasattr(transformer, "_orig_mod"):
        raise ValueError(
            f"{name} wraps a compiled transformer; enable accel before torch.compile, or call transformer.compile()"
        )
    return adapter_of(name)


def adapter_of(name: str) -> Adapter:
    """Return the adapter of a transformer class; ValueError names supported classes, the nearest ones first."""
    for adapter in ADAPTERS:
        if name in adapter.classes:
            return adapter
    known = supported_classes()
    nearest = get_close_matches(name, known, 3, 0.6)
    raise ValueError(
        f"{name} is not a supported transformer; "
        + (f"the nearest that are: {', '.join(nearest)}" if nearest else f"accepted: {', '.join(known)}")
        + ". CONTRIBUTING.md has a recipe for a new one"
    )


def transformers_of(pipeline: Any) -> list[Any]:
    """Return the one or two transformers that denoise in a pipeline."""
    parts = (getattr(pipeline, name, None) for name in ("transformer", "transformer_2"))
    return [part for part in parts if isinstance(part, nn.Module)]
