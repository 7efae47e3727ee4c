"""Training a SpikePoint on an endless stream of recordings of moving patterns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from pointcloud.descent import descend, whole_step
from pointcloud.spikepoint.config import SpikePointConfig
from pointcloud.spikepoint.dataset import LabelledCloud, MovingPatterns
from pointcloud.spikepoint.network import SpikePoint
from pointcloud.weights import read_checkpoint, write_checkpoint

Batch = tuple[Float32[Tensor, "batch points 3"], Int64[Tensor, " batch"]]


def collate(recordings: list[list[LabelledCloud]]) -> Batch:
    """Return the clouds of recordings, all of one size, and their labels as tensors."""
    clouds = list(chain.from_iterable(recordings))
    return torch.stack([cloud.points for cloud in clouds]), torch.tensor([cloud.label for cloud in clouds])


def voting_loss(votes: Float[Tensor, "steps batch classes"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the squared distance to one-hot labels, a mean over steps and classes (SpikePoint, section 4)."""
    return (votes - functional.one_hot(labels, votes.shape[-1])).square().mean()


def half_cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Return the share of the learning rate: up over `warmup` steps, then down to 0 by a cosine."""
    return min(step / warmup, 1.0) * (1 + math.cos(math.pi * step / steps)) / 2


class Trainer:
    """A network, its optimizer, and how many steps they have made; `seed` is that of weights and spikes."""

    def __init__(self, config: SpikePointConfig, seed: int = 0, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.network = SpikePoint(config).to(device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), 0.0)
        self.seed, self.device, self.done = seed, device, 0

    def step(self, batch: Batch, learning_rate: float) -> dict[str, float]:
        """Make one step, return loss and accuracy; ValueError, and no change, if loss or gradient are not finite."""
        clouds, labels = (part.to(self.device) for part in batch)
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.done)
        with whole_step(self.network):
            votes = self.network(clouds, generator)
            loss = voting_loss(votes, labels)
            descend(loss, self.network, self.optimizer, learning_rate, 1.0, self.done + 1)
        self.done += 1
        return {"loss": loss.item(), "accuracy": (votes.mean(0).argmax(1) == labels).double().mean().item()}

    def save(self, folder: Path) -> None:
        """Write `events.safetensors`, to use, and `checkpoint.pt`, to go on from, each replaced at once."""
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        folder.mkdir(parents=True, exist_ok=True)
        self.network.save(folder / "events.safetensors")  # first: a stop in between is made good by going on
        write_checkpoint(folder, {"step": self.done, **self._identity(), **parts})

    def resume(self, folder: Path) -> None:
        """Go on from `checkpoint.pt` if there is one; ValueError if it is broken, of another configuration or seed."""
        parts = {"network": self.network, "optimizer": self.optimizer}
        self.done = read_checkpoint(folder, self.device, self._identity(), "another configuration or seed", **parts)

    def _identity(self) -> dict[str, Any]:
        return {"config": self.network.config.to_json(), "seed": self.seed}


def train(
    output: Path,
    config: SpikePointConfig,
    steps: int = 3000,
    batch: int = 48,
    learning_rate: float = 3e-3,
    *,
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
    every: int = 50,
    report: Callable[[str], None] = print,
) -> SpikePoint:
    """Train and return a network; the same call goes on from the last of the checkpoints, one every 200 steps.

    Every recording is new and gives three windows, so that `batch` is a multiple of 3; none is kept. Adam and a cosine
    as published; losses and accuracies are means over the last `every` steps. ValueError on another `batch`.
    """
    if batch % 3:
        raise ValueError(f"batch must be a multiple of 3, the windows of a recording, got {batch}")
    trainer = Trainer(config, seed, device)
    trainer.resume(output)
    each = batch // 3
    recordings = MovingPatterns("training", max(steps - trainer.done, 0) * each, trainer.done * each, config.points)
    batches: Iterable[Batch] = DataLoader(recordings, each, num_workers=workers, collate_fn=collate)
    start, recent = time.perf_counter(), []
    for made in batches:
        recent.append(trainer.step(made, learning_rate * half_cosine(trainer.done, steps)))
        if trainer.done % every == 0:
            means = {name: sum(values[name] for values in recent) / len(recent) for name in recent[0]}
            said = " ".join(f"{name} {mean:.3f}" for name, mean in means.items())
            report(f"step {trainer.done} {said} {time.perf_counter() - start:.0f} s")
            recent.clear()
        if trainer.done % 200 == 0 and trainer.done < steps:
            trainer.save(output)
    trainer.save(output)  # also where nothing was left to do
    return trainer.network.eval()
