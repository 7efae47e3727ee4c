"""Driving scenes as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch.utils.data import Dataset

from pointcloud.scenes.layout import CLASSES
from pointcloud.scenes.lidar import Lidar
from pointcloud.scenes.scene import Scene, make_scene

EVALUATION_START = 1_000_000  # training has the seeds below


class DrivingScenes(Dataset[Scene]):
    """`count` scenes from number `first` on, made when they are asked for. Nothing is kept.

    `classes` are the names of the labels. Training and evaluation never share a seed. ValueError if a range leaves its
    split.
    """

    classes = CLASSES

    def __init__(
        self, split: Literal["training", "evaluation"], count: int, first: int = 0, lidar: Lidar | None = None
    ) -> None:
        if split not in ("training", "evaluation"):
            raise ValueError(f"split is {split!r}; accepted: 'training', 'evaluation'")
        if first < 0 or count < 0 or first + count > EVALUATION_START:
            raise ValueError(f"scenes {first} to {first + count} asked for; a split has those from 0 to 1,000,000")
        start = first + (EVALUATION_START if split == "evaluation" else 0)
        self.seeds, self.lidar = range(start, start + count), lidar

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, number: int) -> Scene:
        return make_scene(self.seeds[number], self.lidar)

    def __iter__(self) -> Iterator[Scene]:
        return map(self.__getitem__, range(len(self)))
