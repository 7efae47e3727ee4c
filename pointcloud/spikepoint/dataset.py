"""Windows of recordings as a stream of clouds. Training and evaluation share no recording, and so no window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pointcloud.events.record import Events
from pointcloud.spikepoint.clouds import sample_cloud
from pointcloud.spikepoint.patterns import make_recording

EVALUATION_START = 1_000_000  # training has the recordings below


class LabelledCloud(NamedTuple):
    """A window as points, the class of its motion, and the recording that it is from."""

    points: Float32[Tensor, "points 3"]
    label: int
    recording: int


class MovingPatterns(IterableDataset[LabelledCloud]):
    """All windows of `count` recordings from number `first` on; workers of a DataLoader share the recordings out.

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

    def __iter__(self) -> Iterator[LabelledCloud]:
        worker = get_worker_info()
        for seed in self.seeds if worker is None else self.seeds[worker.id :: worker.num_workers]:
            recording, generator = make_recording(seed), torch.Generator().manual_seed(seed)
            for window in windows(recording.events):
                yield LabelledCloud(sample_cloud(window, self.points, generator), recording.label, seed)


def windows(events: Events, length: int = 500_000, step: int = 250_000) -> list[Events]:
    """Return windows of `length` microseconds, one each `step`, as far as events go; empty ones are left out.

    The lengths are those of SpikePoint for DVS128 Gesture.
    """
    if not len(events.t):
        return []
    first, last = int(events.t[0]), int(events.t[-1])
    count = max(round((last - first - length) / step), 0) + 1  # the last one may end a little after the last event
    begins = first + step * torch.arange(count)
    rows = zip(*(torch.searchsorted(events.t, at).tolist() for at in (begins, begins + length)), strict=True)
    parts = [
        (events.t[low:high], events.x[low:high], events.y[low:high], events.polarity[low:high])
        for low, high in rows
        if high > low
    ]
    return [Events(*part, events.width, events.height) for part in parts]
