"""Recordings of moving patterns: outlines whose points send an event wherever they enter another pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pointcloud.events.record import Events, sorted_events

CLASSES = ("left", "right", "up", "down", "expanding", "contracting", "turning", "shaking")
SIZE, SECONDS, INSTANTS, OUTLINE = 64, 1.0, 128, 160  # pixels on a side; no point crosses a pixel between two instants


@dataclass(frozen=True)
class Recording:
    """What the camera sent while a pattern moved, and the place of its motion among `CLASSES`."""

    events: Events
    label: int


def make_recording(seed: int) -> Recording:
    """Return the recording of a number: one second, 64 x 64 pixels, motions in turn, all else at random.

    Patterns are filled polygons, ellipses and bars of any size, place, direction and speed, brighter than what is
    behind them; all drift and turn a little besides, and up to one in twenty events is noise.
    """
    generator = torch.Generator().manual_seed(seed)
    label = seed % len(CLASSES)
    points, normals = make_outline(generator, turning=CLASSES[label] == "turning")
    paths, outward = _move(points, normals, label, generator)
    pixels = paths.floor().long()
    instant, point = (pixels.diff(dim=0) != 0).any(2).nonzero().unbind(1)
    places, brighter = pixels[instant + 1, point], outward[instant, point] > 0
    inside = ((places >= 0) & (places < SIZE)).all(1)
    key = (instant[inside] * SIZE + places[inside, 1]) * SIZE + places[inside, 0]
    key, first = _unique(key)
    noise = int(len(key) * 0.05 * torch.rand((), generator=generator))
    t = (key // SIZE**2 + torch.rand(len(key), generator=generator)) / INSTANTS
    t = (torch.cat([t, torch.rand(noise, generator=generator)]) * SECONDS * 1e6).long()
    x, y = (
        torch.cat([at, torch.randint(SIZE, (noise,), generator=generator)]) for at in (key % SIZE, key // SIZE % SIZE)
    )
    polarity = torch.cat([brighter[inside][first], torch.rand(noise, generator=generator) < 0.5])
    return Recording(sorted_events(t, x.int(), y.int(), polarity, SIZE, SIZE), label)


def make_outline(generator: torch.Generator, turning: bool) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """Return points of an outline of radius 1 and its outward normals; no round ones to be seen turning."""
    corners = int(torch.randint(3, 6 if turning else 8, (), generator=generator))
    corners = 32 if corners > 5 else corners
    aspect = _between(0.25, 0.7 if corners in (4, 32) else 1.0, generator)  # a square turned by a quarter is the same
    angles = torch.arange(corners + 1) * (2 * math.pi / corners)
    vertices = torch.stack([angles.cos(), aspect * angles.sin()], 1)
    edges = vertices.diff(dim=0)
    share = torch.cat([torch.zeros(1), edges.norm(dim=1).cumsum(0)])
    at = torch.linspace(0, float(share[-1]) * (1 - 1e-5), OUTLINE)
    edge = (torch.searchsorted(share, at, right=True) - 1).clamp(max=corners - 1)
    along = (at - share[edge]) / edges.norm(dim=1)[edge]
    normals = torch.stack([edges[:, 1], -edges[:, 0]], 1)
    return vertices[edge] + along[:, None] * edges[edge], normals[edge]


def _move(
    points: Tensor, normals: Tensor, label: int, generator: torch.Generator
) -> tuple[Float[Tensor, "instants n 2"], Float[Tensor, "_ n"]]:
    """Return where an outline's points are at each instant, in pixels, and how far each step leads outward."""
    time = torch.linspace(-0.5, 0.5, INSTANTS + 1)[:, None]
    sign = 1 if label % 2 else -1
    drift = torch.tensor([_between(-4, 4, generator), _between(-4, 4, generator)])
    turn, growth = _between(-0.2, 0.2, generator), _between(-0.1, 0.1, generator)
    radius = _between(9, 15, generator)
    if label < 4:
        drift[label // 2] += sign * _between(22, 40, generator)
    elif label < 6:
        growth -= sign * _between(0.6, 1.1, generator)
    elif label == 6:
        turn = (1 if _between(-1, 1, generator) > 0 else -1) * _between(1.4, 3.0, generator)
        radius = radius + 5
    center = SIZE / 2 + torch.tensor([_between(-9, 9, generator), _between(-9, 9, generator)]) + time * drift
    if label == 7:
        center = center + _shake(time, generator)
    angle = _between(0, 2 * math.pi, generator) + time * turn
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 2).view(-1, 2, 2)
    paths = center[:, None] + radius * (growth * time).exp()[..., None] * torch.einsum("tij,nj->tni", rotation, points)
    outward = (paths.diff(dim=0) * torch.einsum("tij,nj->tni", rotation, normals)[1:]).sum(2)
    return paths, outward


def _shake(time: Float[Tensor, "instants 1"], generator: torch.Generator) -> Float[Tensor, "instants 2"]:
    """Return a swing along a line of any direction, three to five times a second, at most 4 pixels to either side."""
    direction, phase = _between(0, 2 * math.pi, generator), _between(0, 2 * math.pi, generator)
    swing = _between(2.5, 4, generator) * torch.sin(2 * math.pi * _between(3, 5, generator) * time + phase)
    return swing * torch.tensor([math.cos(direction), math.sin(direction)])


def _unique(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys without twins, and where each was first."""
    unique, where = key.unique(return_inverse=True)
    first = torch.full_like(unique, len(key)).scatter_reduce(0, where, torch.arange(len(key)), "amin")
    return unique, first


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
