"""Sparse attention for video diffusion transformers, as a diffusers plug-in: `accel.enable(pipe, "svg-ear")`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.attach import attn_processors, disable, enable, enabled
    from accel.handle import Handle
    from accel.routing.policy import load_routers
    from accel.search import search_patterns

__all__ = ["Handle", "attn_processors", "disable", "enable", "enabled", "load_routers", "search_patterns"]
MODULES = ("caching", "methods", "search", "workbench")


def __getattr__(name: str) -> Any:
    # Diffusers takes seconds to import: only those who attach something pay for it.
    if name in __all__:
        rooms = {"Handle": "accel.handle", "search_patterns": "accel.search", "load_routers": "accel.routing.policy"}
        return getattr(import_module(rooms.get(name, "accel.attach")), name)
    if name in MODULES:
        return import_module(f"accel.{name}")
    raise AttributeError(f"module 'accel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *MODULES])
