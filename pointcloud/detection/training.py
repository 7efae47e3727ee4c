"""Training a detector on an endless stream of ray-cast driving scenes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from pointcloud.classes import check_classes
from pointcloud.descent import descend, whole_step
from pointcloud.detection.augmentation import augment
from pointcloud.detection.detector import Detector
from pointcloud.detection.detector_config import DSVT_TINY, DetectorConfig
from pointcloud.import_open3d import import_open3d
from pointcloud.scenes import DrivingScenes, Lidar, Scene
from pointcloud.weights import read_checkpoint, write_checkpoint


class Batch(NamedTuple):
    """What a training step takes: points of all scenes with their sample, and the boxes and classes of each scene."""

    points: Float[Tensor, "points values"]
    batch: Int[Tensor, " points"]
    boxes: list[Float[Tensor, "_ 7"]]
    labels: list[Int[Tensor, " _"]]


def collate(scenes: list[Scene], attributes: Sequence[str] = ("intensity",), **changes: Any) -> Batch:
    """Return scenes, each changed at random, as a batch; only boxes with enough points in them are to be found.

    `changes` are options of `augment`, as the largest turn.
    """
    pairs = [augment(scene.cloud.values(attributes), scene.boxes[scene.visible], **changes) for scene in scenes]
    sample = torch.arange(len(scenes)).repeat_interleave(torch.tensor([len(points) for points, _ in pairs]))
    labels = [scene.classes[scene.visible] for scene in scenes]
    return Batch(torch.cat([points for points, _ in pairs]), sample, [boxes for _, boxes in pairs], labels)


def one_cycle(step: int, steps: int, warmup: float = 0.1, start: float = 0.1) -> float:
    """Return the share of the learning rate: up from `start` over the first `warmup` of the steps, then down to 0."""
    peak = warmup * steps
    if step < peak:
        return start + (1 - start) * (1 - math.cos(math.pi * step / peak)) / 2
    return (1 + math.cos(math.pi * (step - peak) / (steps - peak))) / 2


class Trainer:
    """A detector, its optimizer, and how many steps they have made."""

    def __init__(self, config: DetectorConfig, device: str = "cpu", bfloat16: bool = False) -> None:
        self.detector = Detector(config).to(device).train()
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), 0.0, (0.9, 0.99), weight_decay=0.05)
        self.device, self.bfloat16, self.done = device, bfloat16, 0

    def step(self, batch: Batch, learning_rate: float, most_gradient: float = 10.0) -> dict[str, float]:
        """Make one step and return its losses; ValueError, and no change, if they or their gradient are not finite."""
        boxes, labels = ([part.to(self.device) for part in parts] for parts in (batch.boxes, batch.labels))
        with whole_step(self.detector):
            with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bfloat16):
                outputs = self.detector(batch.points.to(self.device), batch.batch.to(self.device), len(boxes))
            losses = self.detector.losses(outputs, boxes, labels)
            total = torch.stack(list(losses.values())).sum()
            descend(total, self.detector, self.optimizer, learning_rate, most_gradient, self.done + 1)
        self.done += 1
        return {"loss": total.item(), **{name: loss.item() for name, loss in losses.items()}}

    def save(self, folder: Path) -> None:
        """Write `detector.safetensors`, to use, and `checkpoint.pt`, to go on from, each replaced at once."""
        parts = {"detector": self.detector.state_dict(), "optimizer": self.optimizer.state_dict()}
        folder.mkdir(parents=True, exist_ok=True)
        self.detector.save(folder / "detector.safetensors")  # first: a stop in between is made good by going on
        write_checkpoint(folder, {"step": self.done, **self._identity(), **parts})

    def resume(self, folder: Path) -> None:
        """Go on from `checkpoint.pt` if there is one; ValueError if it is broken or of another configuration."""
        parts = {"detector": self.detector, "optimizer": self.optimizer}
        self.done = read_checkpoint(
            folder, self.device, self._identity(), "a detector of another configuration", **parts
        )

    def _identity(self) -> dict[str, Any]:
        return {"config": self.detector.config.to_json()}


def train(
    output: Path,
    steps: int = 4000,
    batch: int = 2,
    learning_rate: float = 3e-3,
    config: DetectorConfig = DSVT_TINY,
    *,
    bfloat16: bool = False,
    workers: int = 1,
    device: str = "cpu",
    lidar: Lidar | None = None,
    every: int = 20,
    report: Callable[[str], None] = print,
) -> Detector:
    """Train and return a detector; the same call goes on from the last of the checkpoints, one every 100 steps.

    Every scene is new: a worker makes one in some 30 ms, a small part of a step, so that none is kept.
    AdamW, one cycle and clipping as published for DSVT; the losses are reported as means over `every` steps.
    ValueError on a configuration of other classes.
    """
    torch.manual_seed(0)
    trainer = Trainer(config, device, bfloat16)
    trainer.resume(output)
    torch.manual_seed(trainer.done + 1)  # scenes that are made after a stop are changed in other ways
    scenes = _scenes(config, max(steps - trainer.done, 0) * batch, trainer.done * batch, lidar)
    batches: Iterable[Batch] = DataLoader(
        scenes, batch, num_workers=workers, collate_fn=partial(collate, attributes=config.attributes)
    )
    start, recent = time.perf_counter(), []
    for made in batches:
        recent.append(trainer.step(made, learning_rate * one_cycle(trainer.done, steps)))
        if trainer.done % every == 0:
            means = {name: sum(losses[name] for losses in recent) / len(recent) for name in recent[0]}
            said = " ".join(f"{name} {mean:.3f}" for name, mean in means.items())
            report(f"step {trainer.done} {said} {time.perf_counter() - start:.0f} s")
            recent.clear()
        if trainer.done % 100 == 0 and trainer.done < steps:
            trainer.save(output)
    trainer.save(output)  # also where nothing was left to do
    return trainer.detector.eval()


def _scenes(config: DetectorConfig, count: int, first: int, lidar: Lidar | None) -> DrivingScenes:
    """Return `count` scenes from number `first` on; ValueError if they have other classes than the configuration."""
    check_classes(config.head.classes, DrivingScenes.classes, "the configuration")
    if count:
        import_open3d()  # a worker that cannot says so in a dozen lines
    return DrivingScenes("training", count, first, lidar)
