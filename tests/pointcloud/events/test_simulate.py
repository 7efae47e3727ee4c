"""The simulator: events against a walk along the logarithm of each pixel, noise, rest, and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from torch import Tensor

from pointcloud.events.simulate import EventCamera, rested, simulate
from pointcloud.events.video import open_video

PLAIN = EventCamera(mismatch=0, refractory=0, noise=0)


def some_video(frames: int = 6, height: int = 5, width: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(frames, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walked(video: Tensor, rate: float, camera: EventCamera) -> list[tuple[int, int, int, bool]]:
    """Return (t, y, x, polarity) by definition, one pixel and one event after another."""
    levels, found = (video + camera.dark).log(), []
    for y in range(video.shape[1]):
        for x in range(video.shape[2]):
            last = float(levels[0, y, x])
            for number in range(1, len(video)):
                before, after = float(levels[number - 1, y, x]), float(levels[number, y, x])
                while after - last >= camera.on or last - after >= camera.off:
                    last += camera.on if after > last else -camera.off
                    t = (number - 1 + (last - before) / (after - before)) * 1e6 / rate
                    found.append((int(t), y, x, after > before))
    return sorted(found)


@pytest.mark.parametrize("camera", [PLAIN, EventCamera(on=0.3, off=0.15, mismatch=0, refractory=0, noise=0, dark=0.1)])
def test_events_are_those_of_a_walk(camera: EventCamera) -> None:
    video = some_video()
    events = simulate(video, 25, camera)
    columns = (events.t.tolist(), events.y.tolist(), events.x.tolist(), events.polarity.tolist())
    found, wanted = sorted(zip(*columns, strict=True)), walked(video, 25, camera)
    assert len(found) > 100
    assert [row[1:] for row in sorted(found, key=lambda row: (*row[1:3], row[0]))] == [
        row[1:] for row in sorted(wanted, key=lambda row: (*row[1:3], row[0]))
    ]
    assert max(abs(a[0] - b[0]) for a, b in zip(found, wanted, strict=True)) <= 1


def test_a_ramp_sends_an_event_at_each_threshold() -> None:
    dark = 0.02
    top = (dark) * math.exp(1.05) - dark  # five thresholds of 0.2 above black, and a quarter of one
    events = simulate(torch.tensor([0.0, top], dtype=torch.float64).view(2, 1, 1), 1, PLAIN)
    assert events.polarity.all()
    assert torch.allclose(events.t.double(), torch.arange(1, 6).double() * 0.2 / 1.05 * 1e6, atol=1)


def test_a_still_picture_sends_noise_alone() -> None:
    still = torch.full((11, 20, 30), 0.5)
    assert len(simulate(still, 10, PLAIN)) == 0
    events = simulate(still, 10, EventCamera(noise=5, refractory=0))
    assert abs(len(events) - 3000) < 5 * math.sqrt(3000)
    assert abs(int(events.polarity.sum()) - len(events) / 2) < 5 * math.sqrt(len(events)) / 2


def test_pixels_rest() -> None:
    events = simulate(some_video(20), 50, EventCamera(refractory=15_000, noise=20))
    for pixel in range(35):
        t = events.t[(events.y * 7 + events.x) == pixel]
        assert (t.diff() >= 15_000).all()
    assert rested(torch.tensor([0, 4, 5, 9, 10, 3]), torch.tensor([1, 1, 1, 1, 1, 0]), 5).tolist() == [
        True, False, True, False, True, True
    ]  # fmt: skip


def test_seeds_and_mismatch() -> None:
    first, again, other = (simulate(some_video(), 30, EventCamera(mismatch=0.05), seed) for seed in (1, 1, 2))
    assert torch.equal(first.t, again.t) and torch.equal(first.x, again.x)
    assert not (len(first) == len(other) and torch.equal(first.t, other.t))


def test_colour_and_bytes_are_taken() -> None:
    video = (some_video() * 255).round().to(torch.uint8)
    grey, colour = simulate(video, 30, PLAIN), simulate(video[..., None].expand(-1, -1, -1, 3), 30, PLAIN)
    assert abs(len(grey) - len(colour)) <= 2
    assert len(simulate(video.double() / 255, 30, PLAIN)) == len(grey)


@pytest.mark.parametrize(
    ("video", "rate", "said"),
    [
        (some_video(1), 30, "two frames or more is needed, got 1"),
        (some_video() * 2, 30, r"must be in \[0, 1\]"),
        (some_video() * float("nan"), 30, "without NaN"),
        (some_video(), 0, "above 0, got 0"),
        (torch.zeros(2, 4), 30, r"a frame must be \(h w\)"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), 30, "uint8, or floats"),
        ([torch.zeros(2, 2), torch.zeros(2, 3)], 30, r"of one size, got \(2, 3\) after \(2, 2\)"),
    ],
)
def test_what_is_no_video_is_refused(video: Any, rate: float, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        simulate(video, rate)


@pytest.mark.parametrize("changed", [{"on": 0}, {"off": float("nan")}, {"mismatch": -1}, {"dark": 0}])
def test_no_such_camera(changed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changed))} must be"):
        EventCamera(**changed)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_file_is_read(tmp_path: Path, suffix: str) -> None:
    path, frames = tmp_path / f"video{suffix}", np.zeros((4, 32, 48, 3), np.uint8)
    for number in range(4):
        frames[number, :, 10 * number : 10 * number + 8] = 255
    if suffix == ".gif":
        imageio.mimwrite(path, list(frames), duration=100)
    else:
        with imageio.get_writer(path, fps=10, macro_block_size=1) as writer:
            for frame in frames:
                writer.append_data(frame)  # type: ignore[attr-defined]
    with open_video(path) as (read, rate):
        found = torch.stack(list(read))
    assert found.shape == (4, 32, 48) and rate == 10
    assert (found.double() - torch.from_numpy(frames[..., 0]).double()).abs().mean() < 4


def test_what_is_no_video_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="no.mp4 cannot be read as a video"), open_video(tmp_path / "no.mp4"):
        pass
    with pytest.raises(FileNotFoundError, match="there is no file"), open_video(tmp_path / "none.mp4"):
        pass
