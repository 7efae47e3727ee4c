"""Captioned videos of moving shapes, drawn from signed distances."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 190),
    "cyan": (40, 205, 215),
}
BACKGROUNDS = {"black": (16, 16, 16), "white": (240, 240, 240), "gray": (128, 128, 128)}
SIZES = ("small", "large")
# Unit displacement in image coordinates: x to the right, y downwards.
MOTIONS = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
    "stays still": (0, 0),
}
DEFAULT_SIZE = "large"
DEFAULT_BACKGROUND = "black"
EXAMPLE = "a large red circle moves left and a small blue square stays still on a white background"


@dataclass(frozen=True)
class Actor:
    """One shape of a scene; lengths are fractions of the frame."""

    shape: str
    color: str
    size: str
    motion: str

    def phrase(self, name_size: bool) -> str:
        size = f"{self.size} " if name_size else ""
        return f"a {size}{self.color} {self.shape} {self.motion}"


@dataclass(frozen=True)
class Scene:
    """One or two actors on a plain background, and the caption that describes them."""

    actors: tuple[Actor, ...]
    background: str
    caption: str

    def paths(self, jitter: random.Random) -> list[tuple[float, float, float, float, float]]:
        """Return (x, y, radius, reach_x, reach_y) per actor; the first of two actors is above the second."""
        alone = len(self.actors) == 1
        radii = {"small": 0.13, "large": 0.22} if alone else {"small": 0.11, "large": 0.17}
        rows = (0.5,) if alone else (0.28, 0.72)
        reach_y = 0.22 if alone else 0.1
        paths = []
        for actor, row in zip(self.actors, rows, strict=True):
            right, down = MOTIONS[actor.motion]
            x = 0.5 + jitter.uniform(-0.03, 0.03)
            y = row + (jitter.uniform(-0.03, 0.03) if alone else jitter.uniform(-0.02, 0.02))
            paths.append((x, y, radii[actor.size], 0.24 * right, reach_y * down))
        return paths


def caption_of(actors: tuple[Actor, ...], background: str, name_size: bool, name_background: bool) -> str:
    """Return the caption; what it does not name has its default (large, black)."""
    phrases = " and ".join(actor.phrase(name_size) for actor in actors)
    return phrases + (f" on a {background} background" if name_background else "")


def parse_caption(caption: str) -> Scene:
    """Return the scene that a caption of `caption_of` describes; ValueError on any other text."""
    size, color, shape, motion = (
        "|".join(map(re.escape, words)) for words in (SIZES, sorted(COLORS), SHAPES, sorted(MOTIONS))
    )
    phrase = rf"a (?:({size}) )?({color}) ({shape}) ({motion})"
    whole = rf"{phrase}(?: and {phrase})?(?: on a ({'|'.join(sorted(BACKGROUNDS))}) background)?"
    found = re.fullmatch(whole, caption)
    if found is None:
        raise ValueError(f"{caption!r} is no caption of shapes-wan; one reads like {EXAMPLE!r}")
    first, second, background = found.groups()[:4], found.groups()[4:8], found.groups()[8]
    actors = tuple(Actor(s, c, size or DEFAULT_SIZE, m) for size, c, s, m in (first, second) if c)
    return Scene(actors, background or DEFAULT_BACKGROUND, caption)


def sample_scene(generator: random.Random, held_out: frozenset[str] = frozenset()) -> Scene:
    """Draw a random scene whose caption is not in `held_out`."""
    while True:
        name_size, name_background = generator.random() < 0.75, generator.random() < 0.75
        colors = generator.sample(sorted(COLORS), 2)
        actors = tuple(
            Actor(
                generator.choice(SHAPES),
                color,
                generator.choice(SIZES) if name_size else DEFAULT_SIZE,
                generator.choice(sorted(MOTIONS)),
            )
            for color in colors[: 1 if generator.random() < 0.6 else 2]
        )
        background = generator.choice(sorted(BACKGROUNDS)) if name_background else DEFAULT_BACKGROUND
        caption = caption_of(actors, background, name_size, name_background)
        if caption not in held_out:
            return Scene(actors, background, caption)


def held_out_scenes(count: int = 24) -> list[Scene]:
    """Return the evaluation scenes, of which training sees no video."""
    generator = random.Random("shapes-wan evaluation")
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = sample_scene(generator)
        scenes.setdefault(scene.caption, scene)
    return list(scenes.values())


def unseen_scenes() -> Callable[[random.Random], Scene]:
    """Return what draws scenes whose captions are not those of the evaluation."""
    held_out = frozenset(scene.caption for scene in held_out_scenes())
    return lambda generator: sample_scene(generator, held_out)


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Return the distance to the shape's edge, negative inside, in the unit of `radius`."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - radius * 0.88
    # An upright triangle: a base below and two equal sides.
    side = (np.abs(dx) * 2 - dy - radius) / np.sqrt(5)
    return np.maximum(side, dy - radius * 0.9)


def render(
    scene: Scene,
    frames: int,
    height: int,
    width: int,
    jitter: random.Random,
    window: tuple[float, float, float, float] = (0, 1, 0, 1),
    times: tuple[float, float] = (0, 1),
) -> Float[Tensor, "3 frames height width"]:
    """Draw a scene in [-1, 1]; `window` (top, bottom, left, right) and `times` cut out a part of it."""
    video = np.empty((3, frames, height, width), np.float32)
    video[:] = np.reshape(BACKGROUNDS[scene.background], (3, 1, 1, 1))
    parts = covers(scene, np.linspace(times[0], times[1], frames), height, width, jitter, window)
    for actor, cover in zip(scene.actors, parts.numpy(), strict=True):
        video += cover * (np.reshape(COLORS[actor.color], (3, 1, 1, 1)) - video)
    return torch.from_numpy(video / 127.5 - 1)


def covers(
    scene: Scene,
    times: np.ndarray,
    height: int,
    width: int,
    jitter: random.Random,
    window: tuple[float, float, float, float] = (0, 1, 0, 1),
) -> Float[Tensor, "actors frames height width"]:
    """Return how much of each pixel each actor covers, at `times` in [0, 1]."""
    top, bottom, left, right = window
    y = (top + (np.arange(height) + 0.5) / height * (bottom - top))[None, :, None]
    x = (left + (np.arange(width) + 0.5) / width * (right - left))[None, None, :]
    time = times[:, None, None] - 0.5
    pixel = (bottom - top) / height
    parts = []
    for actor, (cx, cy, radius, reach_x, reach_y) in zip(scene.actors, scene.paths(jitter), strict=True):
        distance = signed_distance(actor.shape, x - cx - 2 * reach_x * time, y - cy - 2 * reach_y * time, radius)
        parts.append(np.clip(0.5 - distance / pixel, 0, 1).astype(np.float32))
    return torch.from_numpy(np.stack(parts))
