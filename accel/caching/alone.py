"""One cache at a time: those of diffusers are known by what they leave on a transformer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from accel.errors import InputError
from accel.models.hooks import hooks_of

# How the names of the hooks begin that diffusers' caches leave on modules, also where a function applies them.
THEIRS = {
    "faster_cache_": "FasterCache",
    "fbc_": "FirstBlockCache",
    "mag_cache_": "MagCache",
    "pyramid_attention_broadcast": "PyramidAttentionBroadcast",
    "sea_cache_": "SeaCache",
    "taylorseer_cache": "TaylorSeerCache",
    "text_kv_cache_": "TextKVCache",
}


def check_alone(transformer: Any, modules: Iterable[nn.Module]) -> None:
    """Raise InputError if diffusers caches in this transformer too, as itself says or a hook on one of the modules."""
    name = type(transformer).__name__
    if getattr(transformer, "is_cache_enabled", False):
        theirs = type(transformer._cache_config).__name__.removesuffix("Config")
        raise InputError(
            f"diffusers' {theirs} is enabled on this {name}, and one cache at a time is accepted: "
            "call transformer.disable_cache(), or give accel no cache"
        )
    for hook, _ in hooks_of(modules):
        for start, theirs in THEIRS.items():
            if hook.startswith(start):
                raise InputError(
                    f"diffusers' {theirs} is applied to this {name}, as the hook {hook} shows, and one cache at a "
                    "time is accepted: load the transformer anew, or give accel no cache"
                )


def looked_at(transformer: Any, blocks: list[nn.Module]) -> list[nn.Module]:
    """Return the few modules of which one has a hook under any of these caches, for a look in every call."""
    parts = list(transformer.children())
    firsts = blocks[:1] or [part[0] for part in parts if isinstance(part, nn.ModuleList) and len(part)]
    return [transformer, *parts, *(part for block in firsts for part in block.modules())]
