"""Pictures of events: what happened, how long ago, and how it went on."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from math import ceil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib import colormaps

from pointcloud.events.record import Events
from pointcloud.files.replacing import replacing

BACKGROUND, BRIGHTER, DARKER = (18, 20, 26), (255, 128, 38), (77, 217, 255)
MOST_FRAMES = 1000
MOST_PIXELS = 1 << 24  # of a picture: more than any sensor has, and some 400 MB while it is drawn
MOST_MOVING = 1 << 27  # of all frames of an animation: some 1 GB while they are packed


def event_frame(events: Events) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture with each pixel in the colour of its last event: orange brighter, blue darker."""
    image = np.full((events.height * events.width, 3), BACKGROUND, np.uint8)
    pixel, last = _last(events)
    image[pixel] = np.where(events.polarity.cpu().numpy()[last, None], BRIGHTER, DARKER)
    return image.reshape(events.height, events.width, 3)


def time_surface(events: Events, decay: float = 50_000) -> UInt8[np.ndarray, "h w 3"]:
    """Return exp(-age / decay) of each pixel's last event at the end, in colours; `decay` in microseconds.

    HOTS (Lagorce et al., PAMI 2017). ValueError on a decay that is not above 0.
    """
    if not 0 < decay < float("inf"):
        raise ValueError(f"decay must be above 0 microseconds, got {decay}")
    surface = np.zeros(events.height * events.width)
    pixel, last = _last(events)
    if len(pixel):
        surface[pixel] = np.exp((events.t[last] - events.t[-1]).double().numpy() / decay)
    return colormaps["inferno"](surface.reshape(events.height, events.width), bytes=True)[..., :3]


def shrunk(events: Events, pixels: int) -> Events:
    """Return events on a sensor of at most so many pixels: each, if need be, is one for a square of them."""
    side = next(side for side in count(1) if ceil(events.width / side) * ceil(events.height / side) <= pixels)
    if side == 1:
        return events
    width, height = ceil(events.width / side), ceil(events.height / side)
    return replace(events, x=events.x // side, y=events.y // side, width=width, height=height)


def write_picture(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary:
        imageio.imwrite(temporary, image)


def write_animation(path: Path, events: Events, duration: int = 33_333) -> None:
    """Write a GIF with a frame for every `duration` microseconds, at the speed of the recording.

    Many frames of a large sensor are `shrunk`, as all are held at once. ValueError without events, and on a
    duration below 1 or that makes more than 1,000 frames.
    """
    if not len(events) or duration < 1:
        raise ValueError(
            f"an animation needs events and frames of 1 microsecond or more, got {len(events)}, {duration}"
        )
    frames = events.duration // duration + 1
    if frames > MOST_FRAMES:
        raise ValueError(
            f"an animation of {frames} frames is too long; give frames of {events.duration // 999} microseconds"
        )
    events, start = shrunk(events, MOST_MOVING // frames), int(events.t[0])
    images = np.empty((frames, events.height, events.width, 3), np.uint8)
    for n in range(frames):
        images[n] = event_frame(events.between(start + n * duration, start + (n + 1) * duration))
    with replacing(path) as temporary:
        imageio.imwrite(temporary, images, extension=".gif", duration=max(20, duration // 1000), loop=0)


def _last(events: Events) -> tuple[np.ndarray, torch.Tensor]:
    """Return the pixels with events, and the number of the last of each."""
    pixel = events.y.cpu().numpy().astype(np.int64) * events.width + events.x.cpu().numpy()
    found, back = np.unique(pixel[::-1], return_index=True)
    return found, torch.from_numpy(len(pixel) - 1 - back)
