"""What accel has to know of a model family: data, no mathematics."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accel.attention.call import Geometry
from accel.models.adapters.streams import ALONE, Streams


@dataclass(frozen=True)
class Size:
    """The accepted values of a video's side: multiple * n + offset, from 1 on, with n from `least` up to `most`."""

    multiple: int
    offset: int
    most: int
    least: int = 0

    def accepts(self, value: int) -> bool:
        """Whether a video may have this side."""
        return value in self.nearest(value)

    def nearest(self, value: int) -> list[int]:
        """Return the accepted values next to one, itself if it is accepted."""
        least, count = max(self.least, 0 if self.offset else 1), (value - self.offset) // self.multiple
        bounds = {count, count if (value - self.offset) % self.multiple == 0 else count + 1}
        return sorted({min(max(bound, least), self.most) * self.multiple + self.offset for bound in bounds})

    def __str__(self) -> str:
        return f"{self.multiple}n + {self.offset}" if self.offset else f"multiples of {self.multiple}"


@dataclass(frozen=True)
class Adapter:
    """A model family: its transformer classes, its video self-attention modules, and how to read the grid.

    `self_attention` is a regular expression that the names of these modules match; `geometry` reads the grid of a
    forward call (or None), from the transformer and the call's arguments. Their processors ask diffusers' dispatcher
    for a backend of their own where they are `dispatched`, else they end at torch's attention, as those of the classes
    `caught` do. With `one_mask` each layer makes the same mask anew. `timestep` is the name of that argument,
    `noisiest` what chooses from several timesteps that of what is denoised. `stays` says what is computed in full, a
    `reason` why all of it is.

    For the command line, `sizes` gives the frames, height and width that a pipeline makes, `grid` the tokens of such a
    video; without them it does not take the family. `options` are what a user may set in a pipeline's call.

    Caches need `latents`, what a forward call denoises, in the form of its output, and `blocks` in the order in which
    they run, each on what the one before gives: the hidden states, or both `streams`. None: caches of blocks do not
    work. Arguments that are `shared` have nothing to do with the batch, whatever their sizes.

    Routers need `channels`, those of the hidden states, and `time_embedding`, the module whose (first) output is the
    timestep embedding (batch channels), or one for each token between the two. For narrower MLPs, `mlp` gives the
    first and the last linear layer of a block's, with nothing between them but what acts on each neuron alone.
    """

    classes: tuple[str, ...]
    self_attention: str
    geometry: Callable[[Any, tuple[Any, ...], dict[str, Any]], Geometry | None]
    dispatched: bool = True
    caught: tuple[str, ...] = ()
    one_mask: bool = False
    timestep: str = "timestep"
    noisiest: Callable[[Tensor], Tensor] = torch.max
    stays: str = "attention to text"
    reason: str | None = None
    sizes: Callable[[Any], dict[str, Size]] | None = None
    grid: Callable[[Any, int, int, int], tuple[int, int, int]] | None = None
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
    streams: Streams = ALONE
    latents: Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor] | None = None
    shared: tuple[str, ...] = ()
    channels: Callable[[Any], int] | None = None
    time_embedding: Callable[[Any], nn.Module] | None = None
    mlp: Callable[[Any], tuple[nn.Module, nn.Module]] | None = None

    def modules(self, transformer: nn.Module) -> dict[str, nn.Module]:
        """Return the video self-attention modules by name, in the order of the layers."""
        pattern = re.compile(self.self_attention)
        return {name: module for name, module in transformer.named_modules() if pattern.fullmatch(name)}
