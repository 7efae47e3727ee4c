"""The record of events: what it refuses, slices, and windows against their definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pointcloud.events.record import Events, sorted_events


def some_events(t: list[int], **changed: Any) -> Events:
    columns = {
        "t": torch.tensor(t, dtype=torch.int64),
        "x": torch.arange(len(t), dtype=torch.int32) % 8,
        "y": torch.arange(len(t), dtype=torch.int32) % 6,
        "polarity": torch.arange(len(t)) % 2 == 0,
    }
    return Events(**{**columns, "width": 8, "height": 6, **changed})


@pytest.mark.parametrize(
    ("t", "changed", "said"),
    [
        ([0, 5, 3], {}, "time runs backwards at 1 of 3 events; sort them by time first"),
        ([0, 1], {"x": torch.tensor([0, 8], dtype=torch.int32)}, "1 of 2 events are off the sensor of 8 x 6 pixels: x"),
        ([0, 1], {"y": torch.tensor([-1, 0], dtype=torch.int32)}, "y from -1 to 0"),
        ([0, 1], {"width": 0}, "at least 1 x 1 pixels, got 0 x 6"),
    ],
)
def test_what_cannot_be_is_refused(t: list[int], changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        some_events(t, **changed)


def test_slices_by_number_and_by_time() -> None:
    events = some_events([0, 1, 1, 4, 9])
    assert events[1:3].t.tolist() == [1, 1]
    assert events[1:3].x.tolist() == [1, 2]
    assert events.between(1, 4).t.tolist() == [1, 1]
    assert events.between(1, 5).t.tolist() == [1, 1, 4]
    assert len(events.between(5, 2)) == 0
    assert events.duration == 9
    with pytest.raises(ValueError, match="backwards"):
        events[::-1]


@pytest.mark.parametrize(("duration", "stride"), [(4, None), (4, 2), (3, 5), (1, 1), (100, 7)])
def test_windows_by_time_are_all_that_fit_and_hold_events(duration: int, stride: int | None) -> None:
    t = torch.randint(5, 60, (25,), generator=torch.Generator().manual_seed(0)).sort().values.tolist()
    whole = range(t[0], max(t[0], t[-1] - duration + 1) + 1, stride or duration)
    wanted = [[time for time in t if start <= time < start + duration] for start in whole]
    found = some_events(t).windows(duration=duration, stride=stride)
    assert [window.t.tolist() for window in found] == [window for window in wanted if window]


def test_windows_by_count() -> None:
    events = some_events(list(range(10)))
    assert [window.t.tolist() for window in events.windows(count=4, stride=3)] == [
        [0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]
    ]  # fmt: skip
    assert [len(window) for window in events.windows(count=50)] == [10]


def test_a_pause_of_years_costs_nothing() -> None:
    windows = list(some_events([0, 1, 2, 10**17, 10**17 + 40]).windows(duration=10))
    assert [window.t.tolist() for window in windows] == [[0, 1, 2], [10**17]]


def test_no_events_give_no_windows() -> None:
    assert list(some_events([]).windows(duration=10)) == list(some_events([]).windows(count=10)) == []
    for lengths in ({}, {"duration": 1, "count": 1}, {"count": 0}, {"duration": 5, "stride": 0}):
        with pytest.raises(ValueError, match="windows"):
            some_events([1]).windows(**lengths)


def test_sorting_keeps_the_order_of_equal_times() -> None:
    columns = some_events([0, 0, 0, 0])
    t = torch.tensor([3, 1, 3, 1])
    assert sorted_events(t, columns.x, columns.y, columns.polarity, 8, 6).x.tolist() == [1, 3, 0, 2]
