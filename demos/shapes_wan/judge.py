"""Look at a video of moving shapes and say which colours, motions and shapes it shows: plain image analysis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from demos.shapes_wan.outline import form
from demos.shapes_wan.scenes import COLORS, MOTIONS, SHAPES, Actor, Scene, signed_distance

# Twice the reach of scenes.Scene.paths: how far an actor comes, as a share of width and of height.
REACH_X = 0.48
REACH_Y = {1: 0.44, 2: 0.2}
STILL = 0.35  # of the reach; what comes less far stays still
VISIBLE = 0.15  # distance from the background in RGB, each channel in [0, 1]
SMALLEST = 0.004  # share of the frame that an actor covers at least; the smallest drawn covers 0.014
SHAPE_FRAMES = 7


@dataclass(frozen=True)
class Sighting:
    """What one actor was seen to be; None where it could not be seen."""

    color: str | None = None
    motion: str | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What is right about one actor, and how well the shape that was asked for is drawn (`outline.form`)."""

    color: bool
    motion: bool
    shape: bool
    form: float


def judge(video: Float[np.ndarray, "t h w 3"], scene: Scene) -> list[Verdict]:
    """Compare a video, values in [0, 1], with the scene it should show; one verdict an actor, the upper one first."""
    found = _find(video, len(scene.actors))
    return [
        Verdict(seen.color == actor.color, seen.motion == actor.motion, seen.shape == actor.shape, _form(cover, actor))
        for (seen, cover), actor in zip(found, scene.actors, strict=True)
    ]


def look(video: Float[np.ndarray, "t h w 3"], actors: int) -> list[Sighting]:
    """Say what one or two actors, the first above the second, look like and do."""
    return [sighting for sighting, _ in _find(video, actors)]


def _find(video: Float[np.ndarray, "t h w 3"], actors: int) -> list[tuple[Sighting, Float[np.ndarray, "t h w"]]]:
    """Return each actor's sighting and how far it covers each pixel."""
    if video.ndim != 4 or video.shape[-1] != 3 or actors not in REACH_Y:
        raise ValueError(f"a video (t h w 3) of 1 or 2 actors is judged, got {video.shape} and {actors} actors")
    video = video.astype(np.float32)
    background = _background(video)
    middle = video.shape[1] // 2
    bands = [slice(None)] if actors == 1 else [slice(0, middle), slice(middle, None)]
    paints = [_paint(video[:, band], background) for band in bands]
    names = [None if paint is None else _nearest_color(paint) for paint in paints]
    covers = _covers(video, background, paints, bands, apart=len(set(names)) == len(names))
    sightings = []
    for index, (name, cover) in enumerate(zip(names, covers, strict=True)):
        if name is None or cover.mean() < SMALLEST:
            sightings.append((Sighting(), np.zeros_like(cover)))
            continue
        others = sum((other for place, other in enumerate(covers) if place != index), np.zeros_like(cover))
        seen = Sighting(name, _motion(cover, REACH_Y[actors]), _shape(cover, others < 0.5))
        sightings.append((seen, cover))
    return sightings


def _background(video: Float[np.ndarray, "t h w 3"]) -> Float[np.ndarray, " 3"]:
    """Return the median colour of the frame's edges, which actors hardly touch."""
    edges = (video[:, :2], video[:, -2:], video[:, :, :2], video[:, :, -2:])
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


def _paint(band: Float[np.ndarray, "t h w 3"], background: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"] | None:
    """Return the colour that most of the foreground's clear pixels share, None without a foreground."""
    distance = np.linalg.norm(band - background, axis=-1)
    visible = distance > VISIBLE
    if visible.mean() < SMALLEST:
        return None
    # Blurred edges are mixed with the background: only the clearest pixels vote.
    clear = band[distance > 0.7 * np.quantile(distance[visible], 0.9)]
    votes = np.array([np.linalg.norm(clear - _rgb(name), axis=-1) for name in COLORS]).argmin(axis=0)
    return np.median(clear[votes == np.bincount(votes).argmax()], axis=0)


def _nearest_color(paint: Float[np.ndarray, " 3"]) -> str:
    return min(COLORS, key=lambda name: float(np.linalg.norm(paint - _rgb(name))))


def _rgb(name: str) -> Float[np.ndarray, " 3"]:
    return np.array(COLORS[name], np.float32) / 255


def _covers(
    video: Float[np.ndarray, "t h w 3"],
    background: Float[np.ndarray, " 3"],
    paints: list[Float[np.ndarray, " 3"] | None],
    bands: list[slice],
    apart: bool,
) -> list[Float[np.ndarray, "t h w"]]:
    """Return how far each actor covers each pixel; actors of one colour are told apart by their bands only."""
    covers, misfits = [], []
    for paint, band in zip(paints, bands, strict=True):
        if paint is None:
            covers.append(np.zeros(video.shape[:3], np.float32))
            misfits.append(np.full(video.shape[:3], np.inf, np.float32))
            continue
        line = paint - background
        mix = np.clip((video - background) @ line / (line @ line), 0, 1)
        misfit = np.linalg.norm(video - background - mix[..., None] * line, axis=-1)
        # Noise in the background is no cover; an edge keeps its place, because 0.5 stays 0.5.
        cover = np.clip(2 * mix - 0.5, 0, 1)
        if not apart:
            outside = np.ones(video.shape[1], bool)
            outside[band] = False
            cover[:, outside] = 0
        covers.append(cover)
        misfits.append(misfit)
    best = np.argmin(misfits, axis=0)
    return [np.where((best == index) | (not apart), cover, 0) for index, cover in enumerate(covers)]


def _motion(cover: Float[np.ndarray, "t h w"], reach_y: float) -> str | None:
    """Name the motion of the cover's centre, from a line through its places; None if it is mostly out of sight."""
    solid = cover > 0.5
    mass = solid.sum(axis=(1, 2))
    seen = np.flatnonzero(mass > 0.25 * np.median(mass[mass > 0])) if mass.any() else np.empty(0, int)
    if len(seen) < max(2, len(cover) // 2):
        return None
    places = np.array([[axis.mean() for axis in np.nonzero(solid[frame])] for frame in seen])
    down, right = np.polyfit(seen, places, 1)[0] * (len(cover) - 1) / np.array(cover.shape[1:]) / (reach_y, REACH_X)
    if max(abs(down), abs(right)) < STILL:
        direction = (0, 0)
    elif abs(right) > abs(down):
        direction = (int(np.sign(right)), 0)
    else:
        direction = (0, int(np.sign(down)))
    return next(name for name, unit in MOTIONS.items() if unit == direction)


def _shape(cover: Float[np.ndarray, "t h w"], free: Bool[np.ndarray, "t h w"]) -> str:
    """Name the shape whose template has the largest overlap, summed over frames; only free pixels are compared."""
    scores = {shape: sum(_overlap(shape, cover[n], free[n]) for n in _chosen_frames(cover)) for shape in SHAPES}
    return max(scores, key=lambda shape: scores[shape])


def _form(cover: Float[np.ndarray, "t h w"], actor: Actor) -> float:
    return float(np.mean([form(cover[n], actor.shape) for n in _chosen_frames(cover)]))


def _chosen_frames(cover: Float[np.ndarray, "t h w"]) -> Int[np.ndarray, " n"]:
    return np.unique(np.linspace(0, len(cover) - 1, SHAPE_FRAMES).round().astype(int))


def _overlap(shape: str, cover: Float[np.ndarray, "h w"], free: Bool[np.ndarray, "h w"]) -> float:
    """Return the intersection over union of the cover with the best template of its place and about its size."""
    area = cover.sum()
    if area < 1:
        return 0.0
    y, x = np.mgrid[: cover.shape[0], : cover.shape[1]].astype(np.float32)
    center_y, center_x = (cover * y).sum() / area, (cover * x).sum() / area
    unit_area, unit_drop = _template_moments(shape)
    best = 0.0
    for factor in (0.9, 1.0, 1.1):
        radius = factor * np.sqrt(area / unit_area)
        distance = signed_distance(shape, x - center_x, y - center_y + unit_drop * radius, radius)
        template = np.clip(0.5 - distance, 0, 1)
        both = np.minimum(template, cover)[free].sum()
        best = max(best, float(both / np.maximum(template, cover)[free].sum()))
    return best


def _template_moments(shape: str) -> tuple[float, float]:
    """Return the area of a shape of radius 1, and how far its centre of mass lies below its centre."""
    y, x = np.mgrid[-1.2:1.2:0.02, -1.2:1.2:0.02]
    inside = signed_distance(shape, x, y, 1.0) < 0
    return float(inside.sum() * 0.02**2), float(y[inside].mean())
