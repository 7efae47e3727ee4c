"""Train on a part of each video's tokens: far cheaper than whole videos, and at the positions of whole videos.

Dropping tokens while a diffusion transformer learns, and giving it all of them at the end, is the idea of
Zheng et al., "Fast Training of Diffusion Models with Masked Transformers" (2023). Here the part is a grid (chosen
frames x rows x columns), dense in a window and sparse elsewhere, so that fine texture and layout are both seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Kept = tuple[Int[Tensor, " frames"], Int[Tensor, " rows"], Int[Tensor, " columns"]]


def choose_axis(length: int, count: int, generator: random.Random) -> Int[Tensor, " count"]:
    """Return `count` of `length` places in order: half of them a run about the middle, the rest spread evenly."""
    if not 0 < count <= length:
        raise ValueError(f"between 1 and {length} of {length} places can be kept, got {count}")
    run = count // 2
    start = round(min(max(generator.gauss(0.5, 0.2) * length - run / 2, 0), length - run))
    others = np.delete(np.arange(length), np.arange(start, start + run))
    spread = (np.arange(count - run) + generator.random()) * len(others) / (count - run)
    return torch.from_numpy(np.sort(np.append(others[spread.astype(int)], np.arange(start, start + run))))


def choose(grid: tuple[int, int, int], counts: tuple[int, int, int], generator: random.Random) -> Kept:
    """Return the kept frames, rows and columns of a latent grid."""
    frames, rows, columns = (
        choose_axis(length, min(count, length), generator) for length, count in zip(grid, counts, strict=True)
    )
    return frames, rows, columns


def take(
    latents: Float[Tensor, "batch channels t h w"], kept: Kept
) -> Float[Tensor, "batch channels frames rows columns"]:
    """Return the kept part of latents."""
    frames, rows, columns = kept
    return latents[:, :, frames][:, :, :, rows][..., columns]


@contextmanager
def at_positions(rope: nn.Module, grid: tuple[int, int, int], kept: Kept) -> Iterator[None]:
    """Let a Wan transformer with patch size 1 see the kept part of `grid` at its places in the whole grid."""
    frames, rows, columns = (axis.to(rope.freqs_cos.device) for axis in kept)

    def whole(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].new_empty(1).expand(1, 1, *grid),)

    def part(module: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            table.unflatten(1, grid)[:, frames][:, :, rows][:, :, :, columns].flatten(1, 3) for table in output
        )

    handles = [rope.register_forward_pre_hook(whole), rope.register_forward_hook(part)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
