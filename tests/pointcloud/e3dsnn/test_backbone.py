"""The spiking backbone in a detector: integers against spikes, its map, files, training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

spconv = pytest.importorskip("spconv.pytorch")

from pointcloud.cli import app  # noqa: E402
from pointcloud.detection.backbones import SpikingConfig  # noqa: E402
from pointcloud.detection.bev import BEVConfig  # noqa: E402
from pointcloud.detection.detector import Detector  # noqa: E402
from pointcloud.detection.detector_config import DSVT_TINY, E3DSNN_TINY, DetectorConfig  # noqa: E402
from pointcloud.detection.head import HeadConfig  # noqa: E402
from pointcloud.detection.training import Batch, Trainer  # noqa: E402
from pointcloud.e3dsnn import SpikingBackbone  # noqa: E402
from pointcloud.e3dsnn.backbone import flatten  # noqa: E402
from pointcloud.nn import SpikingLayer, unroll  # noqa: E402
from pointcloud.points import PointCloud  # noqa: E402
from pointcloud.voxels import VoxelGrid  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
SPIKING = SpikingConfig(VoxelGrid((-6.4, -6.4, -2), (6.4, 6.4, 3), (0.4, 0.4, 0.25)), 4, 8, (8, 16), (1, 1), 12)
SMALL = DetectorConfig(SPIKING, bev=BEVConfig((0, 0), (1, 2), (16, 16), (1, 2), (16, 16)), head=HeadConfig(channels=16))


def points(count: int = 600) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(count, 3, generator=generator) * torch.tensor([12.0, 12, 4]) - torch.tensor([6.0, 6, 2])
    values = torch.cat([xyz, torch.rand(count, 1, generator=generator)], 1)
    return values, torch.arange(2).repeat_interleave(count // 2)


def make(config: DetectorConfig = SMALL) -> Detector:
    """Return a detector in float64 whose neurons fire, though nobody has trained it: statistics of its own input."""
    torch.manual_seed(0)
    detector = Detector(config).double()
    with torch.no_grad():
        for module in detector.backbone.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = None
                module.bias.fill_(0.5)
        values, batch = points()
        detector.train()(values.double(), batch, 2)
    return detector.eval()


def run_backbone(detector: Detector) -> tuple[Tensor, Tensor]:
    values, batch = points()
    with torch.no_grad():
        return detector.backbone(*detector.vfe(values.double(), batch, 2), 2)


def test_integers_and_binary_spikes_give_the_same_map() -> None:
    detector, seen = make(), []
    integers, cells = run_backbone(detector)

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0] if isinstance(given[0], Tensor) else given[0].features)

    spiking_layers = [module for module in detector.modules() if isinstance(module, SpikingLayer)]
    for layer in spiking_layers:
        layer.layer.register_forward_pre_hook(note)
    spikes, same = run_backbone(unroll(detector))
    assert torch.equal(cells, same) and (integers - spikes).abs().max() < 1e-10 and integers.std() > 1e-3
    assert len(seen) >= len(spiking_layers) > 8
    assert all(((each == 0) | (each == 1)).all() for each in seen) and sum(each.sum() for each in seen) > 0


def test_layers_that_read_real_numbers_are_named_and_all_others_read_spikes() -> None:
    backbone = make().backbone
    assert isinstance(backbone, SpikingBackbone)
    read = {f"{name}.layer" for name, module in backbone.named_modules() if isinstance(module, SpikingLayer)}
    convolutions = {name for name, module in backbone.named_modules() if type(module).__name__.endswith("Conv3d")}
    assert convolutions - read == set(backbone.continuous)


def test_the_map_has_all_layers_of_a_column_behind_each_other() -> None:
    found, cells = run_backbone(make())
    assert SPIKING.layers == 2 and found.shape == (len(cells), SPIKING.width)
    assert cells[:, 1].eq(0).all() and len(cells.unique(dim=0)) == len(cells)
    assert cells.amax(0).tolist() <= [1, 0, 7, 7] and SMALL.grid.shape == (8, 8, 1)


def test_a_grid_without_voxels_is_a_map_without_cells() -> None:
    empty = spconv.SparseConvTensor(torch.zeros(0, 12), torch.zeros(0, 4, dtype=torch.int32), [2, 8, 8], 1)
    found, cells = flatten(empty)
    assert found.shape == (0, 24) and cells.shape == (0, 4)


def test_the_mean_of_a_voxel_goes_in() -> None:
    detector = make()
    values = torch.tensor([[0.1, 0.1, 0.1, 0.2], [0.3, 0.1, 0.1, 0.6], [-3.0, 0.1, 0.1, 1.0]])
    features, _ = detector.vfe(values, torch.zeros(3, dtype=torch.int64), 1)
    torch.testing.assert_close(features, torch.tensor([[-3.0, 0.1, 0.1, 1.0], [0.2, 0.1, 0.1, 0.4]]))
    with pytest.raises(ValueError, match="none of 3 points is inside"):
        detector.vfe(values + 100, torch.zeros(3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="points have 3 values, this network takes 4"):
        detector.vfe(values[:, :3], torch.zeros(3, dtype=torch.int64), 1)


def test_it_trains_is_saved_and_detects(tmp_path: Path) -> None:
    trainer = Trainer(SMALL)
    values, batch = points()
    boxes, labels = [torch.tensor([[1.0, 1, 0, 4, 2, 1.5, 0.3]])] * 2, [torch.tensor([0])] * 2
    given = Batch(values, batch, boxes, labels)
    torch.manual_seed(0)
    losses = [trainer.step(given, 3e-3)["loss"] for _ in range(12)]
    assert losses[-1] < losses[0]
    trainer.save(tmp_path)
    loaded = Detector.load(tmp_path / "detector.safetensors")
    assert loaded.config == SMALL
    cloud = PointCloud(values[:300, :3].contiguous(), {"intensity": values[:300, 3]})
    before = loaded.detect(cloud, 0.0)
    after = unroll(loaded).detect(cloud, 0.0)
    assert len(before) > 0
    torch.testing.assert_close(after.scores, before.scores, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="another configuration"):
        Detector.load(tmp_path / "detector.safetensors", DSVT_TINY)
    other = Trainer(replace(SMALL, backbone=replace(SPIKING, levels=0)))
    with pytest.raises(ValueError, match="another configuration"):
        other.resume(tmp_path)


@pytest.mark.parametrize("config", [SMALL, E3DSNN_TINY])
def test_configurations_come_back_from_json(config: DetectorConfig) -> None:
    assert '"e3dsnn"' in config.to_json() and DetectorConfig.from_json(config.to_json()) == config


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    given = ["train", "detect", "--output", str(tmp_path / "new"), "--model", "e3dsnn"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and not (tmp_path / "new").exists()
    assert result.stderr == "error: unknown model 'e3dsnn'; accepted: dsvt-tiny, e3dsnn-tiny\n"


def test_the_map_is_that_of_dsvt_tiny() -> None:
    assert E3DSNN_TINY.grid.shape == DSVT_TINY.grid.shape


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"depths": (1,)}, "one entry a stage"),
        ({"stem": 0}, "1 or more"),
        ({"levels": -1}, "levels 0 or more"),
        ({"channels": (8,) * 6, "depths": (1,) * 6}, "cannot be halved 6 times"),
        ({"channels": (8,) * 4, "depths": (1,) * 4}, "has 2 layers after 4 stages; 3 are needed"),
    ],
)
def test_what_does_not_fit_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SPIKING, **wrong)


def test_a_detector_is_evaluated_on_spikes(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    config = replace(E3DSNN_TINY, backbone=replace(E3DSNN_TINY.backbone, channels=(8, 8), joined=8))
    Detector(config).save(tmp_path / "detector.safetensors")
    given = ["evaluate", "detect", str(tmp_path / "detector.safetensors"), "--output", str(tmp_path), "--scenes", "1"]
    found = CliRunner().invoke(app, [*given, "--spikes"])
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "results.json").read_text())["spikes"] is True
    refused = CliRunner().invoke(app, ["evaluate", "detect", "--spikes", "--scenes", "1", "--output", str(tmp_path)])
    assert refused.exit_code == 2 and refused.stderr.startswith("error: dsvt-tiny does not spike; leave --spikes out")
