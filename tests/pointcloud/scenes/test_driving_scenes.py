"""Ray-cast driving scenes against geometry, and their splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

pytest.importorskip("open3d", exc_type=ImportError)

from pointcloud.boxes import overlaps_bev, points_in_boxes  # noqa: E402
from pointcloud.scenes import CLASSES, DrivingScenes, Lidar, Scene, make_scene  # noqa: E402
from pointcloud.scenes.ground import ASPHALT, GRASS, PAINT, Ground, Road  # noqa: E402
from pointcloud.scenes.layout import KINDS, footprint, random_layout, touches  # noqa: E402
from pointcloud.scenes.lidar import scan  # noqa: E402
from pointcloud.scenes.objects import BLOCK, BUSH, CAR, CYCLIST, PEDESTRIAN, POLE, TRUCK, VAN, build, join  # noqa: E402

COARSE = Lidar(beams=8, azimuths=64)


def same(one: Scene, other: Scene) -> bool:
    pairs = [(one.cloud.xyz, other.cloud.xyz), (one.boxes, other.boxes), (one.classes, other.classes)]
    pairs += [(one.cloud.attributes[name], other.cloud.attributes[name]) for name in ("intensity", "label", "instance")]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("parts", [CAR, VAN, TRUCK, PEDESTRIAN, CYCLIST, BLOCK, POLE, BUSH])
def test_every_object_fills_its_box_and_is_closed(parts: tuple) -> None:
    mesh = build(parts, (4.0, 2.0, 1.5), 0.5, np.random.default_rng(3))
    assert np.allclose(mesh.vertices.min(0), [-2, -1, 0]) and np.allclose(mesh.vertices.max(0), [2, 1, 1.5])
    edges = np.sort(mesh.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert len(mesh.triangles) < 250 and len(mesh.reflectance) == len(mesh.triangles)


def test_rectangles_touch_when_they_overlap() -> None:
    generator = np.random.default_rng(0)
    boxes = np.concatenate(
        [generator.uniform(-4, 4, (60, 3)), generator.uniform(0.3, 4, (60, 3)), generator.uniform(-4, 4, (60, 1))], 1
    )
    others = np.stack([footprint(box) for box in boxes[1:]])
    expected = overlaps_bev(*(torch.from_numpy(part) for part in (boxes[1:], boxes[:1])))[:, 0] > 0
    found = [touches(footprint(boxes[0]), other[None]) for other in others]
    assert expected.tolist() == found and 5 < sum(found) < 55
    assert touches(footprint(boxes[0]), others)


@pytest.mark.parametrize("seed", range(3))
def test_layouts_keep_their_rules(seed: int) -> None:
    ground, things = random_layout(np.random.default_rng(seed))
    boxes = torch.from_numpy(np.stack([thing.box for thing in things]))
    assert overlaps_bev(boxes, boxes).fill_diagonal_(0).max() == 0
    counts = {label: sum(thing.label == label for thing in things) for label in (0, 1, 2)}
    for label, _, _, fewest, most, reach in KINDS[:3]:
        assert fewest <= counts[label] <= most
        assert all(np.hypot(*thing.box[:2]) < reach for thing in things if thing.label == label)
    assert [thing.label < 0 for thing in things] == sorted(thing.label < 0 for thing in things)
    for thing in things:
        vertices = torch.from_numpy(thing.mesh.vertices)
        wider = torch.from_numpy(thing.box)[None] + torch.tensor([0, 0, 0, 1, 1, 1, 0]) * 1e-9
        assert points_in_boxes(vertices, wider).all()
        assert thing.box[2] - thing.box[5] / 2 == pytest.approx(ground.height(thing.box[None, :2])[0], abs=1e-9)


def test_roads_have_lanes() -> None:
    road = Road(angle=np.pi / 2, start=5.0, offset=-1.75, half_width=7.0)
    assert np.allclose(road.place(5.0, -1.75), 0) and np.allclose(road.place(8.0, 0.0), [-1.75, 3.0])
    places = np.array([road.place(30.0, side) for side in (0.0, 1.75, 3.5, 6.0, 7.5)])
    assert np.allclose(road.side(places), [0, 1.75, 3.5, 6, 7.5])
    assert Ground(np.zeros((1, 4)), (road,)).reflectance(places).tolist() == [PAINT, ASPHALT, PAINT, ASPHALT, GRASS]


def test_rays_meet_flat_ground_where_trigonometry_says() -> None:
    lidar = Lidar(beams=6, azimuths=32, lowest=-25.0, highest=0.0, noise=0.0, dropout=0.0)
    flat = Ground(np.zeros((1, 4)), ()).mesh()
    returns = scan(flat, lidar, np.random.default_rng(0))
    away = 1.8 / np.tan(np.radians([25, 20, 15, 10, 5]))
    assert len(returns.xyz) == 5 * 32  # the level beam meets nothing
    assert np.abs(returns.xyz[:, 2]).max() < 1e-5
    assert np.allclose(np.hypot(*returns.xyz[:, :2].T), np.repeat(away, 32), rtol=1e-5)
    assert np.allclose(returns.cosine, np.repeat(np.sin(np.radians([25, 20, 15, 10, 5])), 32), atol=1e-6)


def test_noise_is_along_the_ray_and_far_returns_are_lost_more_often() -> None:
    mesh = join([Ground(np.zeros((1, 4)), ()).mesh()])[0]
    exact = scan(mesh, Lidar(beams=16, highest=-2.0, noise=0.0, dropout=0.0), np.random.default_rng(0))
    noisy = scan(mesh, Lidar(beams=16, highest=-2.0, noise=0.02, dropout=0.0), np.random.default_rng(0))
    error = np.linalg.norm(noisy.xyz - [0, 0, 1.8], axis=1) - np.linalg.norm(exact.xyz - [0, 0, 1.8], axis=1)
    assert error.std() == pytest.approx(0.02, rel=0.05) and abs(error.mean()) < 1e-3
    kept = scan(mesh, Lidar(beams=16, highest=-2.0, noise=0.0), np.random.default_rng(0))
    near, far = ((np.hypot(*part.xyz[:, :2].T) < 10).sum() for part in (kept, exact))
    assert near / far == pytest.approx(0.94, abs=0.02)
    assert (len(kept.xyz) - near) / (len(exact.xyz) - far) < near / far - 0.02


def test_points_know_their_box() -> None:
    scene = make_scene(3)
    label, instance = (scene.cloud.attributes[name] for name in ("label", "instance"))
    assert torch.equal(label, torch.where(instance < 0, -1, scene.classes[instance]))
    assert torch.equal(scene.points_per_box, torch.bincount(instance[instance >= 0], minlength=len(scene.boxes)))
    wider = scene.boxes + torch.tensor([0, 0, 0, 0.2, 0.2, 0.2, 0])
    on_object = instance >= 0
    inside = points_in_boxes(scene.cloud.xyz[on_object], wider)
    assert inside.gather(1, instance[on_object, None]).all()
    assert on_object.sum() > 500 and 10_000 < len(scene.cloud) < 32_768
    assert set(scene.classes.tolist()) == set(range(len(CLASSES))) and scene.visible.any() and not scene.visible.all()
    intensity = scene.cloud.attributes["intensity"]
    assert 0 <= intensity.min() and intensity.max() <= 1 and intensity.std() > 0.05


def test_a_seed_is_one_scene_whatever_came_before() -> None:
    first = make_scene(7, COARSE)
    other = make_scene(8, COARSE)
    torch.manual_seed(5)
    np.random.seed(5)
    assert same(first, make_scene(7, COARSE)) and not same(first, other)


def test_scenes_are_made_by_their_number_and_splits_share_nothing() -> None:
    training, evaluation = DrivingScenes("training", 5, 3, COARSE), DrivingScenes("evaluation", 5, 3, COARSE)
    assert list(training.seeds) == [3, 4, 5, 6, 7] and list(evaluation.seeds)[0] == 1_000_003 and len(training) == 5
    made = [scene for batch in DataLoader(training, 2, collate_fn=list) for scene in batch]
    assert len(made) == 5 and same(made[0], make_scene(3, COARSE)) and same(made[4], training[4])
    # Workers take turns by batches then, and a batch is the same whoever makes it.
    assert not isinstance(training, IterableDataset)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_said_in_a_line() -> None:
    with pytest.raises(ValueError, match="accepted: 'training', 'evaluation'"):
        DrivingScenes("test", 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="from 0 to 1,000,000"):
        DrivingScenes("training", 2, 999_999)
    with pytest.raises(ValueError, match="0 beams"):
        Lidar(beams=0)
