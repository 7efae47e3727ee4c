"""What accel has to know of a model family: data, no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from accel.attention.call import Geometry


@dataclass(frozen=True)
class Size:
    """The accepted values of a video's side: multiple * n + offset, from 1 on, with n up to `most`."""

    multiple: int
    offset: int
    most: int

    def accepts(self, value: int) -> bool:
        """Whether a video may have this side."""
        return value in self.nearest(value)

    def nearest(self, value: int) -> list[int]:
        """Return the accepted values next to one, itself if it is accepted."""
        least, count = (0 if self.offset else 1), (value - self.offset) // self.multiple
        bounds = {count, count if (value - self.offset) % self.multiple == 0 else count + 1}
        return sorted({min(max(bound, least), self.most) * self.multiple + self.offset for bound in bounds})

    def __str__(self) -> str:
        return f"{self.multiple}n + {self.offset}" if self.offset else f"multiples of {self.multiple}"


@dataclass(frozen=True)
class Adapter:
    """A model family: its transformer classes, its video self-attention modules, and how to read the grid.

    `self_attention` gives these modules by name, in the order of the layers; `geometry` the grid of a forward call (or
    None), from the transformer and the call's arguments. `sizes` gives the frames, height and width that a pipeline
    makes, `grid` the tokens of such a video. `options` are what a user may set in a pipeline's call.

    Caches need `latents`, what a forward call denoises, in the form of its output, and `blocks` in the order in which
    they run: each takes the hidden states first and returns only them. None: caches of that kind do not work.

    Routers need `channels`, those of the hidden states, and `time_embedding`, the module whose (first) output is the
    timestep embedding (batch channels), or one for each token between the two. For narrower MLPs, `mlp` gives the
    first and the last linear layer of a block's, with nothing between them but what acts on each neuron alone.
    """

    classes: tuple[str, ...]
    self_attention: Callable[[Any], dict[str, nn.Module]]
    geometry: Callable[[Any, tuple[Any, ...], dict[str, Any]], Geometry | None]
    sizes: Callable[[Any], dict[str, Size]]
    grid: Callable[[Any, int, int, int], tuple[int, int, int]]
    options: tuple[str, ...] = (
        "num_frames",
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
        "max_sequence_length",
    )
    frames_per_second: int = 16
    blocks: Callable[[Any], list[nn.Module]] | None = None
    latents: Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor] | None = None
    channels: Callable[[Any], int] | None = None
    time_embedding: Callable[[Any], nn.Module] | None = None
    mlp: Callable[[Any], tuple[nn.Module, nn.Module]] | None = None
