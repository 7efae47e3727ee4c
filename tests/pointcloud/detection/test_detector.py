"""The detector as a whole: sizes, files, training that goes on, evaluation, commands."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from pointcloud.boxes import Detections, points_in_boxes
from pointcloud.cli import app
from pointcloud.detection.augmentation import augment
from pointcloud.detection.bev import BEVConfig
from pointcloud.detection.detector import Detector
from pointcloud.detection.detector_config import DSVT_TINY, WAYMO_PILLAR_DETECTOR, WAYMO_VOXEL_DETECTOR, DetectorConfig
from pointcloud.detection.evaluation import evaluate, write_results
from pointcloud.detection.head import HeadConfig
from pointcloud.detection.training import Batch, Trainer, collate, one_cycle, train
from pointcloud.dsvt.config import DSVTConfig, StageConfig
from pointcloud.points import PointCloud
from pointcloud.scenes import Lidar, Scene, make_scene
from pointcloud.voxels import VoxelGrid

SMALL = DetectorConfig(
    DSVTConfig(
        VoxelGrid((-19.2, -19.2, -2.0), (19.2, 19.2, 4.0), (0.96, 0.96, 6.0)),
        values=4,
        channels=16,
        heads=2,
        feed_forward=16,
        stages=(StageConfig(2, 12, (8, 8, 1), shift=(4, 4, 0)),),
    ),
    bev=BEVConfig((0, 0), (1, 2), (16, 16), (1, 2), (16, 16)),
    head=HeadConfig(channels=16),
)
COARSE = Lidar(beams=12, azimuths=128)


def small_scenes(count: int = 2) -> list[Scene]:
    pytest.importorskip("open3d", exc_type=ImportError)
    return [make_scene(seed, COARSE) for seed in range(count)]


def make_detector(seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return Detector(SMALL).eval()


def make_cloud(points: int = 400) -> PointCloud:
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(points, 3, generator=generator) * torch.tensor([40, 40, 3]) - torch.tensor([20, 20, 1])
    return PointCloud(xyz, {"intensity": torch.rand(points, generator=generator)})


def test_sizes_of_published_detectors_and_of_ours() -> None:
    counts = [
        sum(parameter.numel() for parameter in Detector(config).parameters())
        for config in (WAYMO_PILLAR_DETECTOR, WAYMO_VOXEL_DETECTOR, DSVT_TINY)
    ]
    assert counts[:2] == [38_496 + 2_684_928 + 5_479_680 + 450_188, 38_496 + 3_133_824 + 5_479_680 + 450_188]
    assert counts[2] < 1_500_000


@pytest.mark.parametrize("config", [WAYMO_VOXEL_DETECTOR, DSVT_TINY, SMALL])
def test_configurations_come_back_from_json(config: DetectorConfig) -> None:
    assert DetectorConfig.from_json(config.to_json()) == config


def test_configurations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 values a point do not fit x y z and intensity, elongation"):
        replace(SMALL, attributes=("intensity", "elongation"))
    with pytest.raises(ValueError, match="cannot be halved to 16"):
        replace(SMALL, bev=BEVConfig((0, 0), (1, 16), (16, 16), (1, 16), (16, 16)))
    with pytest.raises(ValueError, match="no detector configuration of this version"):
        DetectorConfig.from_json('{"layers": 3}')


def test_samples_of_a_batch_do_not_meet() -> None:
    detector, first = make_detector(), make_cloud().values(["intensity"])
    second = first[:150].flip(1)
    batch = torch.tensor([0] * len(first) + [1] * len(second))
    with torch.no_grad():
        both = detector(torch.cat([first, second]), batch, 2)
        for number, alone in enumerate((first, second)):
            outputs = detector(alone, torch.zeros(len(alone), dtype=torch.int64), 1)
            for name, part in outputs.items():
                assert (both[name][number] - part[0]).abs().max() < 1e-4


def test_a_saved_detector_finds_the_same(tmp_path: Path) -> None:
    detector, path = make_detector(), tmp_path / "detector.safetensors"
    detector.save(path)
    loaded = Detector.load(path, SMALL)
    found, again = detector.detect(make_cloud(), 0.0), loaded.detect(make_cloud(), 0.0)
    assert len(found.boxes) > 5 and found.boxes.shape[1] == 7
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(found, name), getattr(again, name))
    assert not loaded.training and not found.boxes.requires_grad
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_hold_no_such_detector_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Detector.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        Detector.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="has no detector configuration"):
        Detector.load(path)
    make_detector().save(path)
    with pytest.raises(ValueError, match="another configuration than asked for"):
        Detector.load(path, DSVT_TINY)
    save_file({"a": torch.zeros(1)}, path, {"config": SMALL.to_json()})
    with pytest.raises(ValueError, match="weights of another network than its configuration"):
        Detector.load(path)


def test_checkpoints_that_nothing_can_go_on_from_are_refused(tmp_path: Path) -> None:
    path, trainer = tmp_path / "checkpoint.pt", Trainer(SMALL)
    trainer.save(tmp_path)
    whole = torch.load(path, weights_only=True)
    for state in ({"config": whole["config"]}, whole | {"detector": {}}, [1]):
        torch.save(state, path)
        with pytest.raises(ValueError, match="checkpoint.pt cannot be gone on from: .*; give another output folder"):
            trainer.resume(tmp_path)
    path.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="checkpoint.pt cannot be gone on from"):
        trainer.resume(tmp_path)


def test_clouds_that_cannot_be_looked_at_are_refused() -> None:
    detector = make_detector().train()
    with pytest.raises(ValueError, match="no intensity"):
        detector.detect(PointCloud(torch.zeros(3, 3)))
    with pytest.raises(ValueError, match="none of 3 points is inside"):
        detector.detect(PointCloud(torch.full((3, 3), 99.0), {"intensity": torch.zeros(3)}))
    assert detector.training


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_points_whose_intensity_is_no_number_are_refused(value: float) -> None:
    cloud = make_cloud()
    cloud.attributes["intensity"][[3, 8]] = value
    with pytest.raises(ValueError, match="intensity is NaN or infinite in 2 of 400 points; remove these points"):
        make_detector().detect(cloud)


def test_augmentation_moves_points_with_their_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    box = torch.tensor([[3.0, -2.0, 0.5, 4.0, 2.0, 1.5, 0.7], [-6.0, 1.0, 0.5, 3.0, 1.0, 2.0, -3.0]])
    points = torch.cat([torch.rand(2000, 3, generator=generator) * 20 - 10, torch.rand(2000, 1)], 1)
    ahead = box[:, :2] + torch.stack([box[:, 6].cos(), box[:, 6].sin()], 1)
    points[:2, :2], points[:2, 2] = ahead, 0.5
    kept = ~(points_in_boxes(points[:, :3], box * 1.001) ^ points_in_boxes(points[:, :3], box * 0.999)).any(1)
    points = points[kept]
    before = points_in_boxes(points[:, :3], box)
    turns = set()
    for seed in range(8):
        moved, boxes = augment(points, box, torch.Generator().manual_seed(seed))
        assert torch.equal(points_in_boxes(moved[:, :3], boxes), before) and torch.equal(moved[:, 3], points[:, 3])
        factor = (boxes[0, 3] / 4).item()
        towards = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], 1) * factor
        assert torch.allclose(moved[:2, :2] - boxes[:, :2], towards, atol=1e-5)  # headings still point ahead
        assert 0.95 <= factor <= 1.05 and boxes[:, 6].abs().max() <= math.pi
        turns.add(round(boxes[0, 6].item(), 3))
    assert len(turns) == 8


def test_scans_of_a_camera_stay_in_front_of_it() -> None:
    points, box = torch.tensor([[30.0, 1.0, 0.0, 0.5]]), torch.tensor([[30.0, 1.0, 0.0, 4.0, 2.0, 1.5, 0.3]])
    for seed in range(8):
        moved, boxes = augment(points, box, torch.Generator().manual_seed(seed), both_axes=False)
        assert moved[0, 0] > 0 and boxes[0, 0] > 0
    scene = small_scenes()[0]
    batch = collate([scene], largest_turn=0.0, largest_scaling=0.0, both_axes=False)
    assert torch.equal(batch.points[:, 0], scene.cloud.xyz[:, 0])


def test_learning_rate_rises_and_falls() -> None:
    rates = [one_cycle(step, 200) for step in range(200)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[20] == 1 and rates[-1] < 1e-3
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)


def test_losses_fall_on_two_scenes() -> None:
    scenes = small_scenes()
    torch.manual_seed(0)
    trainer, batch = Trainer(SMALL), collate(scenes)
    losses = [trainer.step(batch, 5e-3)["loss"] for _ in range(15)]
    assert trainer.done == 15 and losses[-1] < 0.5 * losses[0]


def test_a_step_that_is_refused_changes_nothing() -> None:
    torch.manual_seed(0)
    trainer = Trainer(SMALL)
    before = {name: tensor.clone() for name, tensor in trainer.detector.state_dict().items()}
    points, sample = make_cloud().values(["intensity"]), torch.zeros(400, dtype=torch.int64)
    whole = Batch(points, sample, [torch.zeros(0, 7)], [torch.zeros(0).long()])
    with pytest.raises(ValueError, match="the loss is nan at step 1; start again at a lower learning rate"):
        trainer.step(whole._replace(points=points * torch.tensor([1, 1, 1, torch.nan])), 1e-3)
    hook = next(trainer.detector.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ValueError, match="the norm of the gradient is (inf|nan) at step 1; start again at a lower"):
        trainer.step(whole, 1e-3)
    state = trainer.detector.state_dict()
    assert trainer.done == 0 and all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    hook.remove()
    trainer.step(whole, 1e-3)
    changed = {name for name, tensor in trainer.detector.state_dict().items() if not torch.equal(tensor, before[name])}
    assert trainer.done == 1 and {name.rpartition(".")[2] for name in changed} >= {"weight", "bias", "running_mean"}


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    said: list[str] = []
    options: dict[str, Any] = dict(batch=1, config=SMALL, workers=0, lidar=COARSE, every=1, report=said.append)
    first = train(tmp_path, 2, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "detector.safetensors"]
    trainer = Trainer(SMALL)
    trainer.resume(tmp_path)
    assert trainer.done == 2 and trainer.optimizer.state_dict()["state"]
    assert same_weights(trainer.detector, first) and same_weights(
        Detector.load(tmp_path / "detector.safetensors"), first
    )
    second = train(tmp_path, 3, **options)
    assert [line.split()[:2] for line in said] == [["step", "1"], ["step", "2"], ["step", "3"]]
    assert not same_weights(first, second) and not second.training
    (tmp_path / "detector.safetensors").unlink()
    assert same_weights(train(tmp_path, 3, **options), second)  # there is nothing left to do
    assert same_weights(Detector.load(tmp_path / "detector.safetensors"), second)
    with pytest.raises(ValueError, match="another configuration; give another output folder"):
        Trainer(replace(SMALL, head=HeadConfig(channels=8))).resume(tmp_path)


def test_no_checkpoint_is_ahead_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "detector.safetensors").mkdir()
    with pytest.raises(OSError):
        Trainer(SMALL).save(tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def same_weights(one: Detector, other: Detector) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


PERMUTED = replace(SMALL, head=HeadConfig(("cyclist", "vehicle", "pedestrian"), 16))


def test_classes_in_another_order_are_neither_learnt_nor_measured(tmp_path: Path) -> None:
    said = "has the classes cyclist, vehicle, pedestrian; the data have vehicle, pedestrian, cyclist, in this order"
    with pytest.raises(ValueError, match=f"the configuration {said}"):
        train(tmp_path, 1, config=PERMUTED, workers=0)
    assert not list(tmp_path.iterdir())
    model = tmp_path / "permuted.safetensors"
    Detector(PERMUTED).save(model)
    result = CliRunner().invoke(app, ["evaluate", "detect", str(model), "--output", str(tmp_path / "out")])
    assert result.exit_code == 2 and result.stderr == f"error: {model} {said}\n"
    assert list(tmp_path.iterdir()) == [model]


def test_training_without_open3d_ends_before_any_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ImportError, match=r"^\.ply and \.pcd need open3d, driving scenes too: pip install open3d$"):
        train(tmp_path, 1, config=SMALL, workers=1)
    assert not list(tmp_path.iterdir())


class Oracle(Detector):
    """Finds every box of the scenes it was made for, and of the first class also one that is not there."""

    def __init__(self, scenes: list[Scene]) -> None:
        nn.Module.__init__(self)
        self.config = SMALL
        self.scenes = {id(scene.cloud): scene for scene in scenes}

    def detect(self, cloud: PointCloud, threshold: float | None = None) -> Detections:
        scene = self.scenes[id(cloud)]
        wrong = torch.tensor([[90.0, 90, 0, 4, 2, 2, 0]])
        scores = torch.cat([torch.linspace(0.9, 0.5, len(scene.boxes)), torch.tensor([0.95])])
        return Detections(torch.cat([scene.boxes, wrong]), scores, torch.cat([scene.classes, torch.zeros(1).long()]))


def test_evaluation_counts_what_can_be_seen(tmp_path: Path) -> None:
    scenes = small_scenes(1)
    results = evaluate(Oracle(scenes), iter(scenes), 0.7)
    seen = [int((scenes[0].visible & (scenes[0].classes == label)).sum()) for label in range(3)]
    assert [result.truths for result in results.values()] == seen and seen[0] > 1 and seen[2] > 0
    vehicles = results["vehicle"].curve.average_precision
    assert vehicles == pytest.approx(seen[0] / (seen[0] + 1)) and results["cyclist"].curve.average_precision == 1
    picture, numbers = write_results(results, tmp_path / "new", model="oracle")
    written = json.loads(numbers.read_text())
    assert written["model"] == "oracle" and written["classes"]["vehicle"]["truths"] == seen[0]
    assert written["classes"]["vehicle"]["average_precision"] == pytest.approx(vehicles)
    assert written["classes"]["pedestrian"]["average_precision"] is None  # there was none to be found
    assert picture.read_bytes().startswith(b"\x89PNG") and len(list(picture.parent.iterdir())) == 2


def test_commands_say_in_a_line_what_is_wrong(tmp_path: Path) -> None:
    runner = CliRunner()
    for arguments, said in (
        (["evaluate", "detect", str(tmp_path / "none.safetensors")], "none.safetensors"),
        (["train", "detect", "--output", str(tmp_path), "--device", "nowhere"], "device 'nowhere' is not here"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2 and result.stderr.startswith("error:") and result.stderr.count("\n") == 1
        assert said in result.stderr


def test_evaluate_command_writes_its_files(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    make_detector().save(tmp_path / "small.safetensors")
    arguments = [str(tmp_path / "small.safetensors"), "--output", str(tmp_path / "out"), "--scenes", "1"]
    result = CliRunner().invoke(app, ["evaluate", "detect", *arguments])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["scenes"] == 1
    assert result.output.count("average precision") == 3


def test_bfloat16_comes_close(recwarn: pytest.WarningsRecorder) -> None:
    detector, points = make_detector(), make_cloud().values(["intensity"])
    batch = torch.zeros(len(points), dtype=torch.int64)
    with torch.no_grad():
        exact: dict[str, Tensor] = detector(points, batch, 1)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = detector(points, batch, 1)
    assert all(part.dtype == torch.float32 for part in rounded.values()) and not recwarn
    assert (rounded["heatmap"] - exact["heatmap"]).abs().max() < 0.1
