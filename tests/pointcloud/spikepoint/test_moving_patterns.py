"""Recordings and their windows: what moves where, and that splits share nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("spconv.pytorch")

from pointcloud.spikepoint.dataset import EVALUATION_START, MovingPatterns, windows  # noqa: E402
from pointcloud.spikepoint.patterns import CLASSES, SIZE, make_recording  # noqa: E402
from pointcloud.spikepoint.training import collate  # noqa: E402


@pytest.mark.parametrize("seed", range(8))
def test_recordings_are_events_in_order_and_repeat(seed: int) -> None:
    recording, again = make_recording(seed), make_recording(seed)
    events = recording.events
    assert recording.label == seed and torch.equal(events.t, again.events.t) and torch.equal(events.x, again.events.x)
    assert (events.t.diff() >= 0).all() and 0 <= events.t[0] and events.t[-1] < 1_000_000 and len(events.t) > 300
    for places in (events.x, events.y):
        assert places.dtype == torch.int32 and places.min() >= 0 and places.max() < SIZE
    assert events.polarity.any() and not events.polarity.all()


@pytest.mark.parametrize(("label", "axis", "sign"), [(0, 0, -1), (1, 0, 1), (2, 1, -1), (3, 1, 1)])
def test_patterns_move_where_their_class_says(label: int, axis: int, sign: int) -> None:
    for seed in range(label, 40, 8):
        events = make_recording(seed).events
        places = torch.stack([events.x, events.y]).double()
        early, late = (places[:, part].mean(1) for part in (events.t < 300_000, events.t > 700_000))
        assert sign * (late - early)[axis] > 4


@pytest.mark.parametrize(("label", "grows"), [(4, True), (5, False)])
def test_patterns_grow_or_shrink(label: int, grows: bool) -> None:
    for seed in range(label, 40, 8):
        events = make_recording(seed).events
        brighter = events.polarity.double().mean()  # an outline that moves outward brightens
        assert (brighter > 0.6) if grows else (brighter < 0.4)


def test_windows_overlap_by_half() -> None:
    events = make_recording(3).events
    first, second, third = windows(events)
    assert all(len(part) and part.duration <= 500_000 for part in (first, second, third))
    assert torch.equal(first.t[first.t >= 250_000], second.t[second.t < 500_000])
    assert len(first) + len(third) == len(events)
    assert [len(part) for part in windows(events[:0])] == [0, 0, 0]


def test_splits_share_no_recording_and_classes_are_equally_frequent() -> None:
    training = sum(MovingPatterns("training", 8, 8, points=32), [])
    evaluation = sum(MovingPatterns("evaluation", 8, points=32), [])
    assert {cloud.recording for cloud in training} == set(range(8, 16))
    assert {cloud.recording for cloud in evaluation} == set(range(EVALUATION_START, EVALUATION_START + 8))
    assert len(training) == len(evaluation) == 24 and {cloud.points.shape for cloud in training} == {(32, 3)}
    assert torch.bincount(torch.tensor([cloud.label for cloud in evaluation])).tolist() == [3] * len(CLASSES)


@pytest.mark.slow
def test_batches_are_the_same_whoever_makes_them() -> None:
    patterns = MovingPatterns("training", 10, 16, points=32)
    alone, shared = (
        list(DataLoader(patterns, 4, collate_fn=collate, **options))
        for options in ({}, {"num_workers": 2, "multiprocessing_context": "spawn"})
    )
    assert [len(labels) for _, labels in shared] == [12, 12, 6]
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))


@pytest.mark.parametrize(("count", "first"), [(9, EVALUATION_START), (-1, 0), (3, -1)])
def test_what_leaves_a_split_is_refused(count: int, first: int) -> None:
    with pytest.raises(ValueError, match="a split has those from 0 to 1,000,000"):
        MovingPatterns("training", count, first)
