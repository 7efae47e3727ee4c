"""A window of events as a cloud of points (x, y, t)."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from pointcloud.events.record import Events


def sample_cloud(events: Events, count: int, generator: torch.Generator | None = None) -> Float32[Tensor, "count 3"]:
    """Return `count` events of a window, drawn at random and in order of time, as points in 0 to 1.

    Coordinates are x and y over the sensor's width and height, and the time from the first event to the last;
    polarity is left out (SpikePoint, section 3.1). No event is drawn twice where there are enough; where there are
    fewer, each is there equally often, up to one. ValueError on a window without events.
    """
    events_here = len(events)
    if events_here == 0:
        raise ValueError("the window holds no events, so that there is nothing to draw from: leave it out")
    whole, rest = divmod(count, events_here)
    drawn = torch.randperm(events_here, generator=generator)[:rest]
    rows = torch.cat([torch.arange(events_here).repeat(whole), drawn]).sort().values
    t = events.t.cpu()
    time = (t[rows] - t[0]).double() / max(events.duration, 1)
    x, y = events.x.cpu()[rows] / events.width, events.y.cpu()[rows] / events.height
    return torch.stack([x.float(), y.float(), time.float()], 1)
