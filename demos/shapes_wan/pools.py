"""Pools of latents as batches: what a training step takes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from demos.shapes_wan.latents import latent_length
from demos.shapes_wan.scenes import parse_caption

MOST_VIDEOS = 8  # in a step


class Batch(NamedTuple):
    """Videos of one geometry: normalised latents, their captions, and which of `length` latent frames these are.

    `weights` of the loss are those of `form_weights`; without them they are drawn from the captions in each step.
    """

    latents: Float[Tensor, "b c t h w"]
    captions: list[str]
    frames: Int[Tensor, " t"]
    length: int
    weights: Float[Tensor, "b 1 t h w"] | None = None

    def fitting(self, count: int, tokens: int) -> Batch:
        """Return the first videos, so many that `count` frames of each have at most `tokens` tokens; at least one."""
        return self._take(range(min(self._most(count, tokens), len(self.captions))))

    def filling(self, count: int, tokens: int) -> Batch:
        """Return as many videos as that with every one as often as another, or nearly: each gets noise of its own."""
        return self._take([index % len(self.captions) for index in range(self._most(count, tokens))])

    def _most(self, count: int, tokens: int) -> int:
        return max(1, tokens // (count * self.latents[0, 0, 0].numel()))

    def _take(self, chosen: Sequence[int]) -> Batch:
        places = torch.tensor(chosen)
        weights = None if self.weights is None else self.weights[places]
        latents = self.latents[places.to(self.latents.device)]
        return self._replace(latents=latents, captions=[self.captions[index] for index in chosen], weights=weights)


def has_small_corners(caption: str) -> bool:
    """Return whether a small square or triangle is in the scene: the forms that are learned last."""
    return any(actor.size == "small" and actor.shape != "circle" for actor in parse_caption(caption).actors)


class Pools:
    """All shards of one geometry with enough latent frames, in random order, each latent normalised per channel."""

    def __init__(self, folder: Path, geometry: str, frames: int, seed: int, corners: int = 1):
        self.folder, self.geometry, self.frames, self.random = folder, geometry, frames, random.Random(seed)
        self.corners = corners
        self.waiting: list[tuple[Tensor, list[str], Tensor]] = []
        stats = torch.load(folder / "stats.pt")
        self.mean, self.std = (stats[name].view(-1, 1, 1, 1) for name in ("mean", "std"))

    def batch(self, drop_caption: float) -> Batch:
        """Return videos of one shard, some captions emptied for guidance."""
        if not self.waiting:
            for path in sorted(self.folder.glob(f"{self.geometry}-*.pt")):  # new shards join every epoch
                pool = torch.load(path, weights_only=True)
                if len(pool["frames"]) >= self.frames:
                    self.waiting += list(self._batches(pool))
            if not self.waiting:
                raise FileNotFoundError(f"no {self.geometry} pool in {self.folder} has {self.frames} latent frames")
            self.random.shuffle(self.waiting)
        latents, captions, frames = self.waiting.pop()
        latents = (latents.float() - self.mean) / self.std
        captions = ["" if self.random.random() < drop_caption else caption for caption in captions]
        return Batch(latents, captions, frames, latent_length(self.geometry))

    def _batches(self, pool: dict[str, Any]) -> Iterator[tuple[Tensor, list[str], Tensor]]:
        more = self.corners > 1
        times = [self.corners if more and has_small_corners(caption) else 1 for caption in pool["captions"]]
        order = self.random.sample(range(len(times)), sum(times), counts=times)
        size = min(MOST_VIDEOS, len(order))
        for first in range(0, len(order) - size + 1, size):
            chosen = order[first : first + size]
            yield pool["latents"][chosen], [pool["captions"][index] for index in chosen], torch.tensor(pool["frames"])
