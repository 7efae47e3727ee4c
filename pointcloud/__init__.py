"""Sparse 3D networks on spconv's own modules and weights, right and trainable on any machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pointcloud.metering import energy
    from pointcloud.nn.conversion import convert

__all__ = ["convert", "energy"]


def __getattr__(name: str) -> Any:
    # spconv and what it needs take a second to import: only when they are used.
    if name == "convert":
        from pointcloud.nn.conversion import convert

        return convert
    if name == "energy":
        from pointcloud.metering import energy

        return energy
    raise AttributeError(f"module 'pointcloud' has no attribute {name!r}")
