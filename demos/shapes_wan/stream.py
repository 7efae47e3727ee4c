"""An endless stream of fresh videos: drawn by processes on the CPU, encoded where the training is, kept for a while."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from queue import Empty
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from demos.shapes_wan.forms import form_weights
from demos.shapes_wan.latents import Clips, choose_runs, draw_clips, encode_clips, latent_length
from demos.shapes_wan.model import GEOMETRIES
from demos.shapes_wan.pools import Batch, has_small_corners
from demos.shapes_wan.scenes import Scene, unseen_scenes

FEW = 5  # latent frames of a video of which `choose_runs` takes some; parts that want more get whole videos
TOKEN = 8  # pixels a side
KEPT = 200  # shards of each kind to draw from


class Kind(NamedTuple):
    """What a shard holds: a geometry, and whether only few frames of each video."""

    geometry: str
    few: bool


class Order(NamedTuple):
    """What the drawing processes are told."""

    kinds: list[Kind]  # as often as they are wanted
    few_videos: int
    whole_videos: int
    corners: int
    forms: float
    seed: int


class Shard(NamedTuple):
    """What they send: pixels as bytes, and the weights of the loss, which take as long to draw."""

    kind: Kind
    clips: Clips
    weights: Tensor


def kind_of(geometry: str, count: int) -> Kind:
    """Return the shards that a step on `count` frames of each video takes."""
    return Kind(geometry, count <= FEW < latent_length(geometry))


def draw_shard(order: Order, generator: random.Random) -> Shard:
    """Draw one shard; videos with small corners are `order.corners` times as frequent as others."""
    kind, unseen = generator.choice(order.kinds), unseen_scenes()

    def scenes(generator: random.Random) -> Scene:
        while True:
            scene = unseen(generator)
            if has_small_corners(scene.caption) or generator.random() < 1 / order.corners:
                return scene

    runs = choose_runs(kind.geometry, generator) if kind.few else None
    count = order.few_videos if kind.few else order.whole_videos
    clips = draw_clips(kind.geometry, count, generator, runs, scenes)
    times = torch.tensor(clips.frames) / (latent_length(kind.geometry) - 1)
    height, width = (size // TOKEN for size in GEOMETRIES[kind.geometry][1:])
    weights = form_weights(clips.captions, times, height, width, order.forms)
    bytes_ = [((video + 1) * 127.5).round().to(torch.uint8) for video in clips.videos]
    return Shard(kind, clips._replace(videos=bytes_), weights)


def _work(order: Order, number: int, queue: Any) -> None:
    torch.set_num_threads(1)
    generator = random.Random(f"{order.seed} {number}")
    while True:
        queue.put(draw_shard(order, generator))


class Stream:
    """Batches of the newest shards, or of any kept one while no new one has come."""

    def __init__(self, order: Order, vae: Any, workers: int):
        self.vae, self.random = vae, random.Random(order.seed)
        mean, std = (torch.tensor(getattr(vae.config, f"latents_{name}")) for name in ("mean", "std"))
        self._mean, self._std = (x.view(-1, 1, 1, 1).to(vae.device) for x in (mean, std))
        self._kept: dict[Kind, deque[Batch]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._new: dict[Kind, deque[Batch]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.videos = 0  # drawn so far
        context = multiprocessing.get_context("spawn")  # a fork would take the CUDA context along
        self._queue = context.Queue(maxsize=2 * workers)
        self._workers = [
            context.Process(target=_work, args=(order, number, self._queue), daemon=True) for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def choose(self, parts: list[tuple[str, int]]) -> tuple[str, int]:
        """Return a random part of a mix of which there are videos; waits for the first ones."""
        self._receive()
        while not (ready := [part for part in parts if self._kept[kind_of(*part)]]):
            self._receive(seconds=1.0)
        return self.random.choice(ready)

    def batch(self, geometry: str, count: int, drop_caption: float) -> Batch:
        """Return a shard of the kind, some captions emptied for guidance."""
        kind = kind_of(geometry, count)
        batch = self._new[kind].popleft() if self._new[kind] else self.random.choice(self._kept[kind])
        captions = ["" if self.random.random() < drop_caption else caption for caption in batch.captions]
        assert batch.weights is not None
        dropped = torch.tensor([not caption for caption in captions])
        weights = torch.where(dropped.view(-1, 1, 1, 1, 1), 1.0, batch.weights)
        return batch._replace(captions=captions, weights=weights)

    def close(self) -> None:
        """End the drawing processes."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()

    def _receive(self, seconds: float = 0.0) -> None:
        """Encode one shard, if there is one; RuntimeError when no process is left to draw another."""
        try:
            shard = self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
        except Empty:
            if not any(worker.is_alive() for worker in self._workers):
                raise RuntimeError("all processes that draw videos have ended; what they printed says why") from None
            return
        clips = shard.clips
        pixels = [video.to(self.vae.device).float() / 127.5 - 1 for video in clips.videos]
        latents = (encode_clips(self.vae, clips._replace(videos=pixels)) - self._mean) / self._std
        length = latent_length(shard.kind.geometry)
        batch = Batch(latents, clips.captions, torch.tensor(clips.frames), length, shard.weights)
        self.videos += len(latents)
        self._kept[shard.kind].append(batch)
        self._new[shard.kind].append(batch)
