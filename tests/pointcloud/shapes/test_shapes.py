"""Clouds sampled from meshes: what they lie on, their labels, seeds and splits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from pointcloud.scenes.objects import Mesh
from pointcloud.shapes import CATEGORIES, PARTS, SHAPES, ShapeClouds, make_segments, make_shape
from pointcloud.shapes.sample import POINTS

pytest.importorskip("open3d", exc_type=ImportError)

from pointcloud.shapes.objects import make_object
from pointcloud.shapes.primitives import primitive
from pointcloud.shapes.views import FEWEST_POINTS, cut, observe, rotation, sample_surface, scanned, visible


def distance_to_planes(mesh: Mesh, xyz: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    a, b, c = (mesh.vertices[mesh.triangles[triangle, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)
    return np.abs(((xyz - a) * normal).sum(1)) / np.linalg.norm(normal, axis=1)


@pytest.mark.parametrize("name", SHAPES)
def test_meshes_fill_the_unit_ball_and_points_lie_on_their_triangles(name: str) -> None:
    mesh, generator = primitive(name), np.random.default_rng(0)
    assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(1)
    for surface in (sample_surface(mesh, 300, generator), scanned(mesh, generator)):
        assert len(surface.xyz) >= FEWEST_POINTS
        assert distance_to_planes(mesh, *surface).max() < 1e-4


def test_points_are_spread_by_area() -> None:
    box = primitive("box")
    surface = sample_surface(box, 12_000, np.random.default_rng(0))
    counts = np.bincount(surface.triangle, minlength=12)
    assert len(counts) == 12 and (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()
    assert np.abs(surface.xyz.mean(0)).max() < 0.02


def test_occlusion_takes_away_one_side() -> None:
    generator = np.random.default_rng(1)
    sphere = sample_surface(primitive("sphere"), 1000, generator)
    assert 640 <= len(cut(sphere, generator).xyz) <= 900
    seen = visible(sphere, generator).xyz
    assert 300 < len(seen) < 700 and np.linalg.norm(seen.mean(0)) > 0.4


def test_rotations_keep_lengths_and_sides() -> None:
    turns = [rotation(np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.allclose(turn @ turn.T, np.eye(3)) and np.linalg.det(turn) > 0 for turn in turns)


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_have_all_their_parts_where_they_belong(category: str) -> None:
    mesh, parts = make_object(category, np.random.default_rng(0))
    assert len(parts) == len(mesh.triangles) and np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(1)
    names = tuple(f"{category} {part}" for part in CATEGORIES[category])
    assert {PARTS[part] for part in parts} == set(names)
    height = {PARTS[part]: mesh.vertices[mesh.triangles[parts == part]][..., 2].mean() for part in set(parts.tolist())}
    above = {"table": (0, 1), "chair": (1, 2), "lamp": (2, 0), "rocket": (1, 2)}.get(category)
    if above is not None:
        assert height[names[above[0]]] > height[names[above[1]]]


@pytest.mark.parametrize("make", [make_shape, make_segments])
def test_a_seed_gives_one_cloud_whatever_was_made_before(make) -> None:
    first = make(7)
    for seed in range(8):
        again = make(seed)
    assert torch.equal(first.cloud.xyz, again.cloud.xyz) and first.label == again.label
    assert not torch.equal(make(8).cloud.xyz[:50], first.cloud.xyz[:50])


def test_streams_hold_every_class_and_sizes_in_bounds() -> None:
    shapes = list(ShapeClouds("shapes", "training", 120))
    assert set(Counter(sample.label for sample in shapes)) == set(range(len(SHAPES)))
    assert all(FEWEST_POINTS <= len(sample.cloud) <= POINTS for sample in shapes)
    segments = list(ShapeClouds("segments", "training", 40))
    seen = torch.cat([sample.cloud.attributes["label"] for sample in segments])
    assert set(seen.tolist()) == set(range(len(PARTS)))
    for sample in segments:
        names = {PARTS[part].split()[0] for part in sample.cloud.attributes["label"].tolist()}
        assert names == {tuple(CATEGORIES)[sample.label]}


def test_splits_share_no_seed_and_clouds_are_made_by_their_number() -> None:
    training, evaluation = (ShapeClouds("shapes", split, 6) for split in ("training", "evaluation"))
    assert not set(training.seeds) & set(evaluation.seeds)
    assert ShapeClouds("shapes", "training", 2, 3).seeds == range(3, 5)
    made = [sample for batch in DataLoader(training, 3, num_workers=0, collate_fn=list) for sample in batch]
    assert [sample.label for sample in made] == [make_shape(seed).label for seed in range(6)]
    # Workers take turns by batches then, and a batch is the same whoever makes it.
    assert not isinstance(training, IterableDataset) and torch.equal(training[4].cloud.xyz, made[4].cloud.xyz)


def test_a_thin_thing_seen_end_on_still_has_points() -> None:
    needle = Mesh(np.array([[0, 0, 1.0], [0, 1e-5, -1], [1e-5, 0, -1]]), np.array([[0, 1, 2]]), np.ones(1))
    for seed in range(12):
        assert FEWEST_POINTS <= len(observe(needle, 128, np.random.default_rng(seed)).xyz) <= 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("forms", "training", 1), "task is 'forms'; accepted: 'shapes', 'segments'"),
        (("shapes", "test", 1), "split is 'test'; accepted: 'training', 'evaluation'"),
        (("shapes", "training", 1, 100_000_000), "a split has those from 0 to 100,000,000"),
    ],
)
def test_bad_input_is_said_in_a_line(unchecked: None, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapeClouds(*arguments)
    with pytest.raises(ValueError, match="unknown category 'boat'; accepted: table, chair, lamp, mug, rocket"):
        make_object("boat", np.random.default_rng(0))
