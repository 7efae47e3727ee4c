"""Training a network from clouds to logits on an endless stream of shapes or segments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pointcloud.classification.config import ModelConfig
from pointcloud.classification.model import CloudModel
from pointcloud.descent import descend, whole_step
from pointcloud.detection.training import one_cycle
from pointcloud.import_open3d import import_open3d
from pointcloud.shapes import Sample, ShapeClouds
from pointcloud.weights import read_checkpoint, write_checkpoint


class Batch(NamedTuple):
    """Points of all clouds with their cloud, and the class of each cloud or of each point."""

    xyz: Float[Tensor, "points 3"]
    batch: Int[Tensor, " points"]
    labels: Int[Tensor, " rows"]
    size: int


def collate(samples: list[Sample]) -> Batch:
    """Return samples as a batch; those with the attribute `label` have one class a point."""
    lengths = torch.tensor([len(sample.cloud) for sample in samples])
    batch = torch.arange(len(samples)).repeat_interleave(lengths)
    if "label" in samples[0].cloud.attributes:
        labels = torch.cat([sample.cloud.attributes["label"] for sample in samples])
    else:
        labels = torch.tensor([sample.label for sample in samples])
    return Batch(torch.cat([sample.cloud.xyz for sample in samples]), batch, labels, len(samples))


class Trainer:
    """A model, its optimizer, and how many steps they have made."""

    def __init__(self, config: ModelConfig, device: str = "cpu", seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = CloudModel(config).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.0, (0.9, 0.99), weight_decay=0.05)
        self.device, self.seed, self.done = device, seed, 0

    def step(self, batch: Batch, learning_rate: float, most_gradient: float = 10.0) -> tuple[float, float]:
        """Make one step; return loss and accuracy. ValueError, and no change, if loss or gradient are not finite."""
        labels = batch.labels.to(self.device)
        with whole_step(self.model):
            logits = self.model(batch.xyz.to(self.device), batch.batch.to(self.device), batch.size)
            loss = nn.functional.cross_entropy(logits, labels, ignore_index=-1)
            descend(loss, self.model, self.optimizer, learning_rate, most_gradient, self.done + 1)
        self.done += 1
        return loss.item(), (logits.argmax(1) == labels)[labels >= 0].float().mean().item()

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, to use, and `checkpoint.pt`, to go on from, each replaced at once."""
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save(folder / "model.safetensors")  # first: a stop in between is made good by going on
        write_checkpoint(folder, {"step": self.done, **self._identity(), **parts})

    def resume(self, folder: Path) -> None:
        """Go on from `checkpoint.pt` if there is one; ValueError if it is broken or of another model or seed."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        self.done = read_checkpoint(
            folder, self.device, self._identity(), "another network, other classes or another seed", **parts
        )

    def _identity(self) -> dict[str, Any]:
        return {"config": self.model.config.to_json(), "seed": self.seed}


def train(
    output: Path,
    config: ModelConfig,
    steps: int = 1500,
    batch: int = 32,
    learning_rate: float = 3e-3,
    *,
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
    every: int = 20,
    report: Callable[[str], None] = print,
) -> CloudModel:
    """Train and return a model; the same call goes on from the last of the checkpoints, one every 100 steps.

    Every cloud is new, and that of a step is the same however often a run was stopped; every seed has clouds of its
    own. AdamW, one cycle and clipping; loss and accuracy are reported as means over `every` steps.
    """
    trainer = Trainer(config, device, seed)
    trainer.resume(output)
    if trainer.done < steps:
        import_open3d()  # a worker that cannot says so in a dozen lines
    left, first = max(steps - trainer.done, 0), (seed * 1_000_000 + trainer.done * batch)
    batches: Iterable[Batch] = DataLoader(
        ShapeClouds("segments" if config.task == "segments" else "shapes", "training", left * batch, first),
        batch,
        num_workers=workers,
        collate_fn=collate,
    )
    start, recent = time.perf_counter(), []
    for made in batches:
        recent.append(trainer.step(made, learning_rate * one_cycle(trainer.done, steps)))
        if trainer.done % every == 0:
            loss, accuracy = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            report(f"step {trainer.done} loss {loss:.4f} accuracy {accuracy:.3f} {time.perf_counter() - start:.0f} s")
            recent.clear()
        if trainer.done % 100 == 0 and trainer.done < steps:
            trainer.save(output)
    trainer.save(output)  # also where nothing was left to do
    return trainer.model.eval()
