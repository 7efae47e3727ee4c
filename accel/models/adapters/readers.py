"""How the token grid of a forward call is read from its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from accel.attention.call import Geometry

Read = Callable[[Any, tuple[Any, ...], dict[str, Any]], Geometry | None]


def argument(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """Return an argument of a forward call, by position or by name; None where it is not given."""
    if name in kwargs:
        return kwargs[name]
    if not args:
        return None
    names = list(inspect.signature(type(transformer).forward).parameters)[1:]
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else None


def patch_of(config: Any) -> tuple[int, int, int]:
    """Return the sides of a patch in time, height and width; a single number is one of space."""
    patch = config.patch_size
    if isinstance(patch, int):
        return getattr(config, "patch_size_t", None) or 1, patch, patch
    return (1, *patch) if len(patch) == 2 else tuple(patch)


def from_latents(axes: str = "bcthw", rest: str | None = None) -> Read:
    """Return a reader of latents with these axes; a picture without t is a video of one frame."""

    def read(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
        latents = argument(transformer, args, kwargs, "hidden_states")
        if not isinstance(latents, Tensor) or latents.ndim != len(axes):
            return None
        sizes = dict(zip(axes, latents.shape, strict=True))
        patches = zip("thw", patch_of(transformer.config), strict=True)
        return Geometry(*(sizes.get(axis, 1) // patch for axis, patch in patches), rest=rest)

    return read


def denoised(channels: int = 1) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor]:
    """Return a reader of what is denoised: the first of the given channels, as many as come out.

    `channels` is the axis where they stand.
    """

    def read(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        given = argument(transformer, args, kwargs, "hidden_states")
        made = getattr(transformer.config, "out_channels", None)
        return given.narrow(channels, 0, min(made or given.shape[channels], given.shape[channels]))

    return read


def stacks(*names: str) -> Callable[[Any], list[nn.Module]]:
    """Return a reader of the blocks of one or several lists, in the order in which they run."""
    return lambda transformer: [block for name in names for block in getattr(transformer, name)]


def from_sizes(rest: str | None = None) -> Read:
    """Return a reader of the arguments num_frames, height and width, which count tokens of a packed sequence."""

    def read(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
        sizes = [argument(transformer, args, kwargs, name) for name in ("num_frames", "height", "width")]
        return Geometry(*sizes, rest=rest) if all(isinstance(size, int) for size in sizes) else None

    return read
