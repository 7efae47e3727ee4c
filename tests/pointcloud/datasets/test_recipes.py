"""The published recipes: what they do to a cloud, what goes into a network, and how weights are learnt."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pointcloud.datasets import (
    KITTI_RECIPE,
    MODELNET40_RECIPE,
    SEMANTIC_KITTI,
    SEMANTIC_KITTI_RECIPE,
    CloudRecipe,
    LabelledCloud,
    augment,
    collate,
    one_point_a_cell,
    viewed,
)
from pointcloud.points import PointCloud

PLAIN = CloudRecipe(("normal",), 0.01, MODELNET40_RECIPE.optimisation)


def test_a_warm_up_of_exactly_one_step_is_no_division_by_zero() -> None:
    optimizer, schedule = SEMANTIC_KITTI_RECIPE.optimisation.make(
        [nn.Parameter(torch.zeros(1))], 25
    )  # 4 % are one step
    rates = []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < 25 else None
    assert all(math.isfinite(rate) and rate > 0 for rate in rates) and rates[0] == pytest.approx(max(rates))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def thing(seed: int, label: int | None = None) -> LabelledCloud:
    """Return an object whose normals are its directions, and where no label is given a class for each point."""
    xyz = torch.randn(60, 3, generator=generator(seed))
    attributes = {"normal": xyz / xyz.norm(dim=1, keepdim=True), "intensity": torch.rand(60, generator=generator(seed))}
    if label is None:
        attributes["label"] = torch.arange(60) % 20 - 1
    return LabelledCloud(PointCloud(xyz, attributes), label)


def test_an_object_comes_into_the_unit_ball() -> None:
    cloud = thing(0).cloud
    far = PointCloud(100 + 7 * cloud.xyz, cloud.attributes)
    for each in (viewed(cloud, MODELNET40_RECIPE, 0.0), viewed(far, MODELNET40_RECIPE, 0.0)):
        torch.testing.assert_close(each.xyz.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
        assert each.xyz.norm(dim=1).max().item() == pytest.approx(1)


def test_an_object_is_scaled_and_shifted_alone() -> None:
    ball = viewed(thing(0).cloud, MODELNET40_RECIPE, 0.0)
    for seed in range(20):
        made = augment(thing(0).cloud, MODELNET40_RECIPE, generator(seed))
        scale = (made.xyz[1] - made.xyz[0]).norm() / (ball.xyz[1] - ball.xyz[0]).norm()
        shift = made.xyz[0] - scale * ball.xyz[0]
        assert 0.9 <= scale <= 1.1 and shift.abs().max() <= 0.2001
        torch.testing.assert_close(made.xyz, scale * ball.xyz + shift)
        assert made.attributes["normal"].equal(ball.attributes["normal"])


@pytest.mark.parametrize("recipe", [replace(PLAIN, turns=1.0), replace(PLAIN, flips=0.5), replace(PLAIN, flips=1.0)])
def test_normals_go_along(recipe: CloudRecipe) -> None:
    cloud = thing(0).cloud
    made = augment(cloud, recipe, generator(1))
    torch.testing.assert_close(made.attributes["normal"], made.xyz / made.xyz.norm(dim=1, keepdim=True))
    assert made.xyz[:, 2].equal(cloud.xyz[:, 2]) and not made.xyz.equal(cloud.xyz)
    torch.testing.assert_close(made.xyz.norm(dim=1), cloud.xyz.norm(dim=1))


def test_half_of_the_scans_are_turned_and_mirrored() -> None:
    recipe = replace(PLAIN, turns=0.5)
    cloud = thing(0).cloud
    turned = sum(not augment(cloud, recipe, generator(seed)).xyz.equal(cloud.xyz) for seed in range(200))
    mirrored = sum(
        augment(cloud, replace(PLAIN, flips=0.5), generator(seed)).xyz[0].sign().ne(cloud.xyz[0].sign()).long()
        for seed in range(200)
    )
    assert 70 < turned < 130
    assert isinstance(mirrored, torch.Tensor) and mirrored[2] == 0
    assert ((mirrored[:2] > 70) & (mirrored[:2] < 130)).all()


def test_far_points_are_moved_to_the_limits_and_jitter_is_small() -> None:
    xyz = torch.tensor([[50.0, 0.0, 9.0], [1.0, -60.0, -9.0], [1.0, 2.0, 0.5]])
    cloud = PointCloud(xyz, {"intensity": torch.zeros(3)})
    near = viewed(cloud, SEMANTIC_KITTI_RECIPE, 0.0).xyz
    torch.testing.assert_close(near, torch.tensor([[35.2, 0.0, 2.0], [1.0, -35.2, -4.0], [1.0, 2.0, 0.5]]))
    turned = viewed(cloud, SEMANTIC_KITTI_RECIPE, math.pi / 2).xyz  # limited after the turn, as published
    torch.testing.assert_close(turned[:2, :2], torch.tensor([[0.0, 35.2], [35.2, 1.0]]), rtol=0, atol=1e-5)
    jittered = augment(thing(0).cloud, replace(PLAIN, jitter=0.02, largest_jitter=0.02), generator()).xyz
    moved = (jittered - thing(0).cloud.xyz).abs()
    assert 0 < moved.max() <= 0.02001 and (moved > 0.0199).float().mean() > 0.2


def test_a_voxel_is_one_of_its_points() -> None:
    xyz = torch.randn(400, 3, generator=generator()) - 5
    rows, cells, point_voxel = one_point_a_cell(xyz, 0.5, generator())
    place = (xyz / 0.5).floor().flip(1).int()
    assert cells.equal(place[rows] - place.amin(0)) and cells.amin(0).tolist() == [0, 0, 0]
    assert len(cells) == len(place.unique(dim=0)) < 400
    assert cells[point_voxel].equal(place - place.amin(0))
    again, other = (one_point_a_cell(xyz, 0.5, generator(seed))[0] for seed in (0, 1))
    assert again.equal(rows) and not other.equal(rows)


def test_every_point_of_a_voxel_has_its_turn() -> None:
    drawn = {one_point_a_cell(torch.rand(5, 3), 1.0, generator(seed))[0].item() for seed in range(60)}
    assert drawn == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("xyz", "said"),
    [
        (torch.zeros(0, 3), "a cloud has no point"),
        (torch.tensor([[0.0, 0, 0], [1e6, 0, 0]]), "spans 20000000 cells"),
        (torch.tensor([[0.0, 0, 0], [0, math.nan, 0]]), "spans nan cells"),
    ],
)
def test_clouds_that_cannot_be_cut(xyz: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        one_point_a_cell(xyz, 0.05)


def test_objects_become_a_batch() -> None:
    batch = collate([thing(0, 3), thing(1, 7)], MODELNET40_RECIPE, training=True, generator=generator())
    assert batch.labels.tolist() == [3, 7] and batch.size == 2
    assert batch.features.shape == (len(batch.coordinates), 6) and batch.coordinates.dtype == torch.int32
    assert batch.coordinates[:, 0].bincount().tolist() == [60, 60] and len(batch.point_voxel) == 120
    low = batch.features[:60, :3].div(0.01).floor().amin(0)
    assert batch.coordinates[:60, 1:].equal((batch.features[:60, :3].div(0.01).floor() - low).flip(1).int())


def test_points_of_scans_keep_their_classes() -> None:
    samples = [thing(0), thing(1)]
    recipe = replace(SEMANTIC_KITTI_RECIPE, cell=1e-3, limits=None)  # so fine that a voxel has one point
    batch = collate(samples, recipe, training=False, generator=generator())
    labels = torch.cat([cloud.attributes["label"] for cloud, _ in samples])
    assert batch.labels[batch.point_voxel].equal(labels)
    values = torch.cat([cloud.values(("intensity",)) for cloud, _ in samples])
    assert batch.features[batch.point_voxel].equal(values)
    assert batch.coordinates[batch.point_voxel, 0].tolist() == [0] * 60 + [1] * 60


@pytest.mark.parametrize(("mixes", "sizes"), [(1.0, [120, 60]), (0.0, [60, 60, 60])])
def test_two_scans_become_one(mixes: float, sizes: list[int]) -> None:
    recipe = replace(SEMANTIC_KITTI_RECIPE, mixes=mixes, cell=1e-4)
    batch = collate([thing(seed) for seed in range(3)], recipe, training=True, generator=generator())
    assert batch.coordinates[:, 0].bincount().tolist() == sizes and batch.size == len(sizes)
    assert collate([thing(0), thing(1)], recipe, training=False).size == 2


def test_kinds_of_labels_do_not_mix() -> None:
    with pytest.raises(ValueError, match="give one kind"):
        collate([thing(0, 1), thing(1)], MODELNET40_RECIPE, training=False)
    cloud = thing(0, 1).cloud
    assert collate([LabelledCloud(cloud, None)], MODELNET40_RECIPE, training=False).labels.shape == (0,)


def rates(recipe: CloudRecipe, steps: int) -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer, schedule = recipe.optimisation.make([weight], steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(found) < steps else None
    return found


def test_rates_follow_the_published_schedules() -> None:
    assert rates(MODELNET40_RECIPE, 10) == pytest.approx([0.1] * 6 + [0.01] * 2 + [0.001] * 2)
    cycle = rates(SEMANTIC_KITTI_RECIPE, 100)
    assert cycle[0] == pytest.approx(2e-4) and max(cycle) == cycle[3] == pytest.approx(2e-3)
    assert cycle[-1] == pytest.approx(2e-6)
    optimizer, _ = KITTI_RECIPE.optimisation.make([nn.Parameter(torch.zeros(1))], 10)
    assert optimizer.param_groups[0]["betas"] == (0.95, 0.99)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        MODELNET40_RECIPE.optimisation.make([nn.Parameter(torch.zeros(1))], 0)


def test_losses() -> None:
    logits, labels = torch.randn(8, 19, generator=generator()), torch.arange(8)
    weights = torch.tensor(SEMANTIC_KITTI_RECIPE.class_weights)
    assert len(weights) == len(SEMANTIC_KITTI)
    each = -logits.log_softmax(1)[torch.arange(8), labels]
    labels[5:] = -1
    expected = (each * weights[:8])[:5].sum() / weights[:5].sum()
    torch.testing.assert_close(SEMANTIC_KITTI_RECIPE.loss()(logits, labels), expected)
    assert MODELNET40_RECIPE.loss().label_smoothing == 0.2


def test_the_published_grid_of_kitti() -> None:
    assert KITTI_RECIPE.grid.shape == (1408, 1600, 40)


def test_batches_go_through_the_networks() -> None:
    pytest.importorskip("spconv.pytorch")
    from pointcloud.e3dsnn import Classifier, E3DSNNConfig, Segmenter

    narrow = E3DSNNConfig(6, 40, 4, (4, 8), (0, 0))
    coarse = replace(MODELNET40_RECIPE, cell=0.2)
    objects = collate([thing(0, 3), thing(1, 7)], coarse, training=True, generator=generator())
    logits = Classifier(narrow)(objects.features, objects.coordinates, objects.size)
    assert coarse.loss()(logits, objects.labels).isfinite()
    segments = replace(narrow, values=4, classes=19, decoder=(8, 8))
    coarse = replace(SEMANTIC_KITTI_RECIPE, cell=0.5)
    scans = collate([thing(0), thing(1)], coarse, training=True, generator=generator())
    logits = Segmenter(segments)(scans.features, scans.coordinates, scans.size)
    loss = coarse.loss()(logits, scans.labels)
    loss.backward()
    assert loss.isfinite() and logits[scans.point_voxel].shape == (120, 19)
