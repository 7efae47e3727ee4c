"""Where things stand in a street: random, by rules of traffic, and never one in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pointcloud.scenes.ground import LANE, Ground, Road, random_ground
from pointcloud.scenes.objects import BLOCK, BUSH, CAR, CYCLIST, PEDESTRIAN, POLE, TRUCK, VAN, Mesh, Part, Triple, build

CLASSES = ("vehicle", "pedestrian", "cyclist")
REACH = 38.0  # metres from the sensor to the centres of labelled objects
MARGIN = 0.2  # metres kept free around each object

Random = np.random.Generator
Pose = tuple[float, float, float]  # x, y, heading
Form = tuple[tuple[Part, ...], Triple]  # parts; length, width and height


@dataclass(frozen=True)
class Thing:
    """A mesh in the street and its box (centre, length, width, height, heading); label -1 is clutter."""

    mesh: Mesh
    box: Float[np.ndarray, " 7"]
    label: int


def _vehicle_form(random: Random) -> Form:
    kind = random.random()
    if kind < 0.75:
        return CAR, (random.uniform(3.6, 5.2), random.uniform(1.65, 1.95), random.uniform(1.4, 1.75))
    if kind < 0.9:
        return VAN, (random.uniform(4.8, 6.2), random.uniform(1.9, 2.2), random.uniform(1.9, 2.6))
    return TRUCK, (random.uniform(6.5, 8.0), random.uniform(2.2, 2.5), random.uniform(2.7, 3.5))


def _pedestrian_form(random: Random) -> Form:
    return PEDESTRIAN, (random.uniform(0.5, 0.8), random.uniform(0.5, 0.8), random.uniform(1.5, 1.95))


def _cyclist_form(random: Random) -> Form:
    return CYCLIST, (random.uniform(1.6, 1.9), random.uniform(0.5, 0.75), random.uniform(1.55, 1.85))


def _building_form(random: Random) -> Form:
    return BLOCK, (random.uniform(6, 25), random.uniform(4, 10), random.uniform(3, 12))


def _pole_form(random: Random) -> Form:
    width = random.uniform(0.12, 0.35)
    return POLE, (width, width, random.uniform(2.5, 7))


def _clutter_form(random: Random) -> Form:
    kind = random.random()
    if kind < 0.5:
        return BUSH, (random.uniform(0.6, 2.5), random.uniform(0.6, 2), random.uniform(0.6, 2))
    if kind < 0.8:
        return BLOCK, (random.uniform(0.4, 1.8), random.uniform(0.4, 1.2), random.uniform(0.6, 1.6))
    return BLOCK, (random.uniform(4, 12), random.uniform(0.1, 0.3), random.uniform(0.9, 2))  # a fence


def _sign(random: Random) -> float:
    return float(random.choice([-1, 1]))


def _along(road: Road, side: float) -> float:
    """Return the heading of traffic that keeps to the right."""
    return road.angle if side < 0 else road.angle + np.pi


def _vehicle_side(road: Road, random: Random) -> tuple[float, float]:
    sign, kind = _sign(random), random.random()
    if kind < 0.55:
        side = sign * LANE * (random.integers(round(road.half_width / LANE)) + 0.5) + random.normal(0, 0.15)
        return side, _along(road, side) + random.normal(0, 0.04)
    if kind < 0.85:  # parked at the kerb
        return sign * (road.half_width + 1.3), _along(road, sign) + random.normal(0, 0.02)
    return sign * (road.half_width + 3.0), road.angle + _sign(random) * np.pi / 2 + random.normal(0, 0.05)


def _pedestrian_side(road: Road, random: Random) -> tuple[float, float]:
    crossing = random.random() < 0.2
    inner, outer = (0, road.half_width) if crossing else (road.half_width + 0.5, road.half_width + 7)
    return _sign(random) * random.uniform(inner, outer), random.uniform(-np.pi, np.pi)


def _cyclist_side(road: Road, random: Random) -> tuple[float, float]:
    side = _sign(random) * (road.half_width - random.uniform(-1.5, 1))
    return side, _along(road, side) + random.normal(0, 0.15)


def _roadside(inner: float, outer: float) -> Callable[[Road, Random], tuple[float, float]]:
    def side(road: Road, random: Random) -> tuple[float, float]:
        away = road.half_width + random.uniform(inner, outer)
        return _sign(random) * away, road.angle + random.normal(0, 0.1)

    return side


# label, form, side and heading on a road, fewest, most, reach in metres
KINDS = (
    (0, _vehicle_form, _vehicle_side, 4, 20, REACH),
    (1, _pedestrian_form, _pedestrian_side, 2, 15, REACH),
    (2, _cyclist_form, _cyclist_side, 0, 6, REACH),
    (-1, _building_form, _roadside(11.0, 22.0), 2, 8, 60.0),
    (-1, _pole_form, _roadside(0.4, 3.0), 2, 12, 50.0),
    (-1, _clutter_form, _roadside(2.0, 9.0), 4, 20, 50.0),
)


def footprint(box: Float[np.ndarray, " 7"], margin: float = 0.0) -> Float[np.ndarray, "4 2"]:
    """Return the corners of a box seen from above, in order, `margin` metres larger on each side."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    half = box[3:5] / 2 + margin
    return np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * half @ np.array([[cos, sin], [-sin, cos]]) + box[:2]


def touches(one: Float[np.ndarray, "4 2"], others: Float[np.ndarray, "n 4 2"]) -> bool:
    """Return whether a rectangle meets any of the others, by the separating-axis theorem."""
    axes = np.concatenate([np.broadcast_to(one[1:3] - one[:2], (len(others), 2, 2)), others[:, 1:3] - others[:, :2]], 1)
    mine, theirs = axes @ one.T, axes @ others.transpose(0, 2, 1)
    apart = (mine.max(2) < theirs.min(2)) | (theirs.max(2) < mine.min(2))
    return not apart.any(1).all()


def _stand(form: Form, pose: Pose, ground: Ground, label: int, random: Random) -> Thing:
    parts, size = form
    x, y, heading = pose
    mesh = build(parts, size, random.uniform(0.1, 0.8), random)
    z = ground.height(np.array([[x, y]]))[0]
    cos, sin = np.cos(heading), np.sin(heading)
    vertices = mesh.vertices @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + [x, y, z]
    turned = (heading + np.pi) % (2 * np.pi) - np.pi
    return Thing(
        Mesh(vertices, mesh.triangles, mesh.reflectance), np.array([x, y, z + size[2] / 2, *size, turned]), label
    )


def random_layout(random: Random, attempts: int = 40) -> tuple[Ground, list[Thing]]:
    """Draw the ground and what stands on it, labelled things first; z = 0 is the ground below the sensor."""
    ground = random_ground(random)
    own = np.array([0, 0, 0, 5.5, 2.6, 2, ground.roads[0].angle])  # the vehicle that carries the sensor
    things, taken = [], [footprint(own)]
    for label, form_of, side_of, fewest, most, reach in KINDS:
        for _ in range(random.integers(fewest, most + 1)):
            form = form_of(random)
            for _ in range(attempts):
                road = ground.roads[random.integers(len(ground.roads))]
                side, heading = side_of(road, random)
                x, y = road.place(road.start + random.uniform(-reach, reach), side)
                corners = footprint(np.array([x, y, 0, *form[1], heading]), MARGIN)
                if np.hypot(x, y) < reach and not touches(corners, np.stack(taken)):
                    things.append(_stand(form, (x, y, heading), ground, label, random))
                    taken.append(corners)
                    break
    return ground, things
