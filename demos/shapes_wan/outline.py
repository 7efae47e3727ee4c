"""How well a form is drawn: the circularity of circles, and how sharp the corners of squares and triangles are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

ANGLES = 32
PER_PIXEL = 4  # samples along a ray
CLEAR = 0.2  # of cover; a ray ends where there is less
NEAR_CORNER = np.deg2rad(8)
# From the centre of mass of a shape of radius 1 (`scenes.signed_distance`), y downwards; then its area.
CORNERS = {
    "square": (np.array([(x, y) for x in (-0.88, 0.88) for y in (-0.88, 0.88)]), 1.76**2),
    "triangle": (np.array([(0.0, -1.0), (-0.95, 0.9), (0.95, 0.9)]) - (0.0, 0.8 / 3), 1.9**2 / 2),
}


def form(cover: Float[np.ndarray, "h w"], shape: str) -> float:
    """Return how well a picture of a shape's cover, values in [0, 1], has its form: 1 if it has, about 0 if not at all.

    A circle's is its circularity, 4 pi area / perimeter^2 (a square's is 0.79). A square's and a triangle's is how far
    its corners reach out: 0 no farther than a circle of that area, 1 as far as true ones.
    """
    if cover.sum() < 1:
        return 0.0
    return _circularity(cover) if shape == "circle" else _sharpness(cover, shape)


def _circularity(cover: Float[np.ndarray, "h w"]) -> float:
    angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
    points = _radii(cover, angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    after = np.roll(points, -1, 0)
    area = (points[:, 0] * after[:, 1] - points[:, 1] * after[:, 0]).sum() / 2
    perimeter = np.linalg.norm(after - points, axis=1).sum()
    if perimeter == 0:  # what covers the frame in pieces leaves its centre empty
        return 0.0
    of_a_circle = np.pi / (ANGLES * np.tan(np.pi / ANGLES))  # a polygon of so many sides has less
    return float(4 * np.pi * area / perimeter**2 / of_a_circle)


def _sharpness(cover: Float[np.ndarray, "h w"], shape: str) -> float:
    corners, unit_area = CORNERS[shape]
    area = cover.sum()
    reaches = np.linalg.norm(corners, axis=1) * np.sqrt(area / unit_area)
    angles = np.arctan2(corners[:, 1], corners[:, 0])
    nearby = angles[:, None] + np.linspace(-NEAR_CORNER, NEAR_CORNER, 9)
    seen = _radii(cover, nearby.ravel()).reshape(nearby.shape).max(1)
    round_ = np.sqrt(area / np.pi)
    return float(((seen - round_) / (reaches - round_)).mean())


def _radii(cover: Float[np.ndarray, "h w"], angles: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return how far the cover reaches from its centre of mass in each direction, in pixels."""
    y, x = np.mgrid[: cover.shape[0], : cover.shape[1]]
    center_x, center_y = (float((cover * axis).sum() / cover.sum()) for axis in (x, y))
    steps = (np.arange(PER_PIXEL * max(cover.shape)) + 0.5) / PER_PIXEL
    found = _bilinear(cover, center_x + np.cos(angles)[:, None] * steps, center_y + np.sin(angles)[:, None] * steps)
    # What is half covered counts half, so that blur moves no edge; what another shape left out ends the ray.
    return (found * np.cumprod(found > CLEAR, axis=1)).sum(1) / PER_PIXEL


def _bilinear(
    cover: Float[np.ndarray, "h w"], x: Float[np.ndarray, "n m"], y: Float[np.ndarray, "n m"]
) -> Float[np.ndarray, "n m"]:
    """Return the picture between its pixels, zero outside."""
    padded = np.pad(cover, 1)
    x, y = (np.clip(place + 1, 0, side - 1.001) for place, side in ((x, padded.shape[1]), (y, padded.shape[0])))
    left, top = x.astype(int), y.astype(int)
    right, down = x - left, y - top
    above = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    below = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return above * (1 - down) + below * down
