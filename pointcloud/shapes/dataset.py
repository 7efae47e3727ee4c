"""Shapes and segments as streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch.utils.data import Dataset

from pointcloud.shapes.objects import PARTS
from pointcloud.shapes.primitives import SHAPES
from pointcloud.shapes.sample import Sample, make_segments, make_shape

EVALUATION_START = 100_000_000  # training has the seeds below
Task = Literal["shapes", "segments"]


class ShapeClouds(Dataset[Sample]):
    """`count` clouds from number `first` on, made when they are asked for. Nothing is kept.

    Training and evaluation never share a seed. ValueError if a name is unknown or a range leaves its split.
    """

    def __init__(self, task: Task, split: Literal["training", "evaluation"], count: int, first: int = 0) -> None:
        if task not in ("shapes", "segments"):
            raise ValueError(f"task is {task!r}; accepted: 'shapes', 'segments'")
        if split not in ("training", "evaluation"):
            raise ValueError(f"split is {split!r}; accepted: 'training', 'evaluation'")
        if first < 0 or count < 0 or first + count > EVALUATION_START:
            raise ValueError(f"clouds {first} to {first + count} asked for; a split has those from 0 to 100,000,000")
        start = first + (EVALUATION_START if split == "evaluation" else 0)
        self.task, self.seeds = task, range(start, start + count)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels: of shapes, or of parts."""
        return SHAPES if self.task == "shapes" else PARTS

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, number: int) -> Sample:
        return (make_shape if self.task == "shapes" else make_segments)(self.seeds[number])

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))
