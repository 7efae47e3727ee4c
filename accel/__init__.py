"""Sparse attention for video diffusion transformers, as a diffusers plug-in: `accel.enable(pipe, "svg-ear")`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.attach import Handle, attn_processors, disable, enable, enabled

__all__ = ["Handle", "attn_processors", "disable", "enable", "enabled"]


def __getattr__(name: str) -> Any:
    # Diffusers takes seconds to import: only those who attach something pay for it.
    if name in __all__:
        from accel import attach

        return getattr(attach, name)
    raise AttributeError(f"module 'accel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
