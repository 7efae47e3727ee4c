"""Events that a camera would send of a video: thresholds on the logarithm of intensity.

The model is that of ESIM (Rebecq et al., CoRL 2018): between two frames the logarithm of a pixel changes linearly, and
an event is sent wherever it has moved by a threshold since the last. Thresholds that differ from pixel to pixel, and
noise, are those of v2e (Hu et al., CVPR Workshops 2021).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pointcloud.events.record import Events, sorted_events

LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709
LEAST_THRESHOLD = 0.01  # as in v2e; a pixel of threshold 0 would never stop
Crossings = tuple[Int64[Tensor, " _"], Int64[Tensor, " _"], Bool[Tensor, " _"]]  # time, pixel, polarity


@dataclass(frozen=True)
class EventCamera:
    """What a simulated camera is like; ValueError on figures that no camera can have.

    Thresholds are changes of the natural logarithm of intensity, `mismatch` the standard deviation of each pixel's own
    ones. After an event a pixel sends none for `refractory` microseconds. `noise` is in events a pixel and second.
    `dark` is added to intensities from 0 to 1, so that black has a logarithm.
    """

    on: float = 0.2
    off: float = 0.2
    mismatch: float = 0.03
    refractory: int = 100
    noise: float = 0.1
    dark: float = 0.02

    def __post_init__(self) -> None:
        for name, least in (("on", LEAST_THRESHOLD), ("off", LEAST_THRESHOLD), ("dark", 1e-4)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name in ("mismatch", "refractory", "noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def simulate(
    video: Iterable[Tensor],
    frames_per_second: float,
    camera: EventCamera | None = None,
    seed: int = 0,
) -> Events:
    """Return the events of a video, given as a tensor (t h w) or (t h w 3) or as frames one by one.

    Frames are uint8, or floats in [0, 1]; the first is at time 0. The same seed gives the same events. ValueError on
    fewer than two frames, frames of different size or of other numbers, and a rate that is not above 0.
    """
    if not 0 < frames_per_second < float("inf"):
        raise ValueError(f"frames per second must be above 0, got {frames_per_second}")
    camera, generator = camera or EventCamera(), torch.Generator().manual_seed(seed)
    parts: list[Crossings] = []
    sensor, count, shape = None, 0, (0, 0)
    for frame in video:
        level = _level(frame, camera.dark)
        if sensor is None:
            sensor, shape = _Sensor(level.flatten(), camera, generator), (level.shape[0], level.shape[1])
        elif level.shape != shape:
            raise ValueError(f"frames must be of one size, got {tuple(level.shape)} after {shape}")
        else:
            parts.append(sensor.advance(level.flatten(), *(1e6 * n / frames_per_second for n in (count - 1, count))))
        count += 1
    if count < 2:
        raise ValueError(f"a video of two frames or more is needed, got {count}")
    end = int(1e6 * (count - 1) / frames_per_second)
    parts.append(_noise(shape[0] * shape[1], end, camera.noise, generator))
    return _gathered(parts, shape, camera.refractory)


class _Sensor:
    """Pixels, each with its thresholds, its logarithm now and the one at its last event."""

    def __init__(self, level: Float[Tensor, " pixels"], camera: EventCamera, generator: torch.Generator) -> None:
        own = torch.randn(2, len(level), generator=generator, dtype=torch.float64) * camera.mismatch
        self.on, self.off = (own + torch.tensor([[camera.on], [camera.off]])).clamp(min=LEAST_THRESHOLD)
        self.level, self.reference = level, level.clone()

    def advance(self, level: Float[Tensor, " pixels"], start: float, end: float) -> Crossings:
        """Take the next frame; return the thresholds crossed on the way, from `start` to `end` in microseconds."""
        change = level - self.reference
        step = torch.where(change > 0, self.on, -self.off)
        times = (change / step).floor()  # how many thresholds
        pixel = torch.arange(len(level)).repeat_interleave(times.long())
        before = (times.cumsum(0) - times).long()
        number = torch.arange(len(pixel)) - before[pixel] + 1
        crossed = self.reference[pixel] + number * step[pixel]
        share = (crossed - self.level[pixel]) / (level - self.level)[pixel]
        t = start + share.nan_to_num(1.0).clamp(0, 1) * (end - start)
        self.reference, self.level = self.reference + times * step, level
        return t.long(), pixel, step[pixel] > 0


def _level(frame: Tensor, dark: float) -> Float[Tensor, "h w"]:
    """Return the logarithm of each pixel's intensity; ValueError on what is no frame."""
    if frame.ndim not in (2, 3) or frame.shape[2:] not in ((), (1,), (3,)) or frame.numel() == 0:
        raise ValueError(f"a frame must be (h w), (h w 1) or (h w 3), got {tuple(frame.shape)}")
    if frame.dtype != torch.uint8 and not frame.is_floating_point():
        raise ValueError(f"frames must be uint8, or floats in [0, 1], got {frame.dtype}")
    intensity = frame.cpu().double() / (255 if frame.dtype == torch.uint8 else 1)
    if not bool(((intensity >= 0) & (intensity <= 1)).all()):
        raise ValueError("frames of floats must be in [0, 1] and without NaN; divide by the largest value")
    if intensity.ndim == 3:
        weights = LUMA if intensity.shape[2] == 3 else (1.0,)
        intensity = intensity @ torch.tensor(weights, dtype=torch.float64)
    return (intensity + dark).log()


def _noise(pixels: int, end: int, rate: float, generator: torch.Generator) -> Crossings:
    """Return events at random pixels and times, as many brighter as darker."""
    expected = torch.tensor(pixels * end * 1e-6 * rate, dtype=torch.float64)
    count = int(torch.poisson(expected, generator=generator))
    t = torch.randint(max(end, 1), (count,), generator=generator)
    pixel = torch.randint(pixels, (count,), generator=generator)
    return t, pixel, torch.rand(count, generator=generator) < 0.5


def _gathered(parts: list[Crossings], shape: tuple[int, int], refractory: int) -> Events:
    t, pixel, polarity = (torch.cat(columns) for columns in zip(*parts, strict=True))
    kept = rested(t, pixel, refractory)
    t, pixel, polarity = t[kept], pixel[kept], polarity[kept]
    height, width = shape
    return sorted_events(t, (pixel % width).int(), (pixel // width).int(), polarity, width, height)


def rested(t: Int64[Tensor, " events"], pixel: Int64[Tensor, " events"], refractory: int) -> Bool[Tensor, " events"]:
    """Return which events are sent by pixels that rest `refractory` microseconds after each that they send."""
    if refractory == 0 or not len(t):
        return torch.ones(len(t), dtype=torch.bool)
    key = pixel * (int(t.max()) + refractory + 1) + t  # so that no pixel's events are within reach of another's
    key, order = key.sort(stable=True)
    following = torch.searchsorted(key, key + refractory)
    ordered = pixel[order]
    first = torch.ones(len(t), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    kept, now = torch.zeros(len(t), dtype=torch.bool), first.nonzero()[:, 0]
    while len(now):  # one event of every pixel at a time
        kept[order[now]] = True
        after = following[now]
        there = after < len(t)
        now = after[there][ordered[after[there]] == ordered[now[there]]]
    return kept
