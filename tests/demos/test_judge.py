from __future__ import annotations

import random

import numpy as np
import pytest
from jaxtyping import Float

from demos.shapes_wan.judge import Sighting, judge, look
from demos.shapes_wan.outline import form
from demos.shapes_wan.scenes import Actor, Scene, render, sample_scene

FRAMES, SIDE = 9, 128


def draw(scene: Scene, generator: random.Random) -> Float[np.ndarray, "t h w 3"]:
    return (render(scene, FRAMES, SIDE, SIDE, generator).permute(1, 2, 3, 0).numpy() + 1) / 2


def blur(video: Float[np.ndarray, "t h w 3"], sigma: float) -> Float[np.ndarray, "t h w 3"]:
    reach = int(3 * sigma) + 1
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (1, 2):
        padding = [(reach, reach) if place == axis else (0, 0) for place in range(4)]
        padded = np.pad(video, padding, mode="edge")
        parts = [padded.take(range(start, start + SIDE), axis) for start in range(2 * reach + 1)]
        video = sum(weight * part for weight, part in zip(window / window.sum(), parts, strict=True))
    return video


def scene_of(*actors: Actor, background: str = "black") -> Scene:
    return Scene(actors, background, "")


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "noise"), [(0.0, 0.0), (1.0, 0.03)])  # 1 pixel of 128 is 2 of 256
def test_ground_truth_is_judged_right(sigma: float, noise: float) -> None:
    generator, numbers = random.Random(7), np.random.default_rng(7)
    verdicts = []
    for _ in range(25):
        scene = sample_scene(generator)
        video = draw(scene, generator)
        if sigma:
            video = np.clip(blur(video, sigma) + noise * numbers.standard_normal(video.shape), 0, 1)
        verdicts += judge(video, scene)
    for name in ("color", "motion", "shape"):
        assert np.mean([getattr(verdict, name) for verdict in verdicts]) >= 0.99, name


def test_each_fault_is_found_alone() -> None:
    shown = Actor("circle", "red", "large", "moves left")
    video = draw(scene_of(shown), random.Random(0))
    for field, value in (("color", "blue"), ("motion", "moves up"), ("shape", "square")):
        asked = Actor(**{**shown.__dict__, field: value})
        (verdict,) = judge(video, scene_of(asked))
        assert [name for name in ("color", "motion", "shape") if not getattr(verdict, name)] == [field]


def test_exchanged_actors_are_wrong_in_everything() -> None:
    upper = Actor("circle", "red", "large", "moves left")
    lower = Actor("square", "cyan", "small", "stays still")
    video = draw(scene_of(upper, lower, background="gray"), random.Random(0))
    assert look(video, 2) == [Sighting("red", "moves left", "circle"), Sighting("cyan", "stays still", "square")]
    for verdict in judge(video, scene_of(lower, upper)):
        assert not (verdict.color or verdict.motion or verdict.shape)


def test_two_actors_of_one_color_are_told_apart() -> None:
    upper = Actor("triangle", "green", "small", "moves right")
    lower = Actor("square", "green", "large", "moves left")
    seen = look(draw(scene_of(upper, lower, background="white"), random.Random(0)), 2)
    assert seen == [Sighting("green", "moves right", "triangle"), Sighting("green", "moves left", "square")]


def test_an_empty_half_is_not_seen() -> None:
    video = draw(scene_of(Actor("circle", "red", "small", "moves left")), random.Random(0))
    video[:, SIDE // 2 :] = video[0, 0, 0]
    first, second = look(video, 2)
    assert first.color == "red"
    assert second == Sighting()
    assert look(np.full((5, 32, 32, 3), 0.5), 1) == [Sighting()]


def test_a_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="3 actors"):
        look(np.zeros((5, 32, 32, 3)), 3)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_form_tells_true_shapes_from_drops(size: str, shape: str) -> None:
    sharp = draw(scene_of(Actor(shape, "red", size, "moves left")), random.Random(1))
    forms = {}
    for sigma in (0.5, 2.0):
        video = blur(sharp, sigma)
        for asked in ("circle", "square", "triangle"):
            (verdict,) = judge(video, scene_of(Actor(asked, "red", size, "moves left")))
            forms[sigma, asked] = verdict.form
    assert 0.86 < forms[0.5, shape] < 1.02 and max(forms, key=lambda key: forms[key])[1] == shape
    if shape == "circle":
        assert abs(forms[0.5, "square"]) < 0.05 > abs(forms[0.5, "triangle"])
    else:
        assert forms[2.0, shape] < forms[0.5, shape] - 0.1  # rounded corners


def test_what_is_not_seen_has_no_form() -> None:
    video = np.full((5, 32, 32, 3), 0.5)
    assert judge(video, scene_of(Actor("circle", "red", "large", "moves left")))[0].form == 0
    cover = np.zeros((32, 32), np.float32)
    cover[:, [2, 29]] = 1  # nothing where the centre of mass is
    assert [form(cover, shape) <= 0 for shape in ("circle", "square", "triangle")] == [True] * 3
