"""Windows of recordings as a stream of clouds. Training and evaluation share no recording, and so no window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import Dataset

from pointcloud.events.record import Events
from pointcloud.spikepoint.clouds import sample_cloud
from pointcloud.spikepoint.patterns import make_recording

EVALUATION_START = 1_000_000  # training has the recordings below


class LabelledCloud(NamedTuple):
    """A window as points, the class of its motion, and the recording that it is from."""

    points: Float32[Tensor, "points 3"]
    label: int
    recording: int


class MovingPatterns(Dataset[list[LabelledCloud]]):
    """The windows of each of `count` recordings from number `first` on, made when they are asked for.

    The split is by recording: windows overlap by half, and those of one recording show one pattern, so that a random
    share of windows, as was published, would test on what training has seen. ValueError if a range leaves its split.
    """

    def __init__(self, split: Literal["training", "evaluation"], count: int, first: int = 0, points: int = 256) -> None:
        if split not in ("training", "evaluation"):
            raise ValueError(f"split is {split!r}; accepted: 'training', 'evaluation'")
        if first < 0 or count < 0 or first + count > EVALUATION_START:
            raise ValueError(f"recordings {first} to {first + count} asked for; a split has those from 0 to 1,000,000")
        start = first + (EVALUATION_START if split == "evaluation" else 0)
        self.seeds, self.points = range(start, start + count), points

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, number: int) -> list[LabelledCloud]:
        seed = self.seeds[number]
        recording, generator = make_recording(seed), torch.Generator().manual_seed(seed)
        return [
            LabelledCloud(sample_cloud(window, self.points, generator), recording.label, seed)
            for window in windows(recording.events)
        ]

    def __iter__(self) -> Iterator[list[LabelledCloud]]:
        return map(self.__getitem__, range(len(self)))


def windows(events: Events, length: int = 500_000, step: int = 250_000, end: int = 1_000_000) -> list[Events]:
    """Return all windows of `length` microseconds, one each `step` from 0 on, that end by `end`.

    The lengths are those of SpikePoint for DVS128 Gesture. Unlike `Events.windows`, which begins at the first event and
    ends at the last, this gives the same number for each recording of the same time.
    """
    return [events.between(start, start + length) for start in range(0, end - length + 1, step)]
