"""Train on some frames of each video: far cheaper than whole videos, and at the places of whole videos.

Dropping tokens while a diffusion transformer learns, and giving it all of them at the end, is the idea of
Zheng et al., "Fast Training of Diffusion Models with Masked Transformers" (2023).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Frames = Int[Tensor, " frames"]


def choose_frames(length: int, count: int, generator: random.Random) -> Frames:
    """Return `count` of `length` frames in order: first and last, a run about half as long, and others at random.

    The ends stay, because rotary embedding tells only distances: a frame's time shows in how far it is from them.
    """
    if not 2 <= count <= length:
        raise ValueError(f"between 2 and {length} of {length} frames can be kept, got {count}")
    inner = list(range(1, length - 1))
    run = (count - 1) // 2
    start = generator.randrange(len(inner) - run + 1)
    kept = inner[start : start + run]
    rest = generator.sample(sorted(set(inner) - set(kept)), count - 2 - run)
    return torch.tensor(sorted([0, *kept, *rest, length - 1]))


@contextmanager
def at_frames(rope: Any, length: int, frames: Frames) -> Iterator[None]:
    """Let a Wan transformer with patch size 1 see latents that hold only `frames` at their places among `length`."""
    frames = frames.to(rope.freqs_cos.device)

    def whole(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        batch, channels, _, height, width = inputs[0].shape
        return (inputs[0].new_empty(1).expand(batch, channels, length, height, width),)

    def part(module: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(table.unflatten(1, (length, -1))[:, frames].flatten(1, 2) for table in output)

    handles = [rope.register_forward_pre_hook(whole), rope.register_forward_hook(part)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def kept_grid(frames: Frames, length: int, latents: Float[Tensor, "batch channels frames h w"]) -> list[Tensor]:
    """Return the places of the kept frames, of the rows and of the columns, each in [-1, 1]."""
    axes = [(frames, length), *((torch.arange(size), size) for size in latents.shape[3:])]
    return [axis * (2 / max(1, size - 1)) - 1 for axis, size in axes]
