"""The spiking detector that ships: what it finds, and that on spikes of 0 and 1 it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

pytest.importorskip("spconv.pytorch")

from pointcloud.cli import app  # noqa: E402
from pointcloud.detection.detector import Detector  # noqa: E402
from pointcloud.detection.detector_config import E3DSNN_TINY  # noqa: E402
from pointcloud.detection.evaluation import evaluate  # noqa: E402
from pointcloud.detection.shipped import EMBEDDED, SAMPLE, load_detector  # noqa: E402
from pointcloud.files import read_points  # noqa: E402
from pointcloud.nn import SpikingLayer, unroll  # noqa: E402
from pointcloud.points import PointCloud  # noqa: E402
from pointcloud.scenes import DrivingScenes  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector("e3dsnn-tiny")


def test_it_finds_what_is_in_scenes_that_it_never_saw(detector: Detector) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    assert detector.config == E3DSNN_TINY
    results = evaluate(detector, DrivingScenes("evaluation", 4))
    assert results["vehicle"].truths > 25 and results["vehicle"].curve.average_precision > 0.75
    assert results["pedestrian"].truths > 10 and results["pedestrian"].curve.average_precision > 0.6


def test_points_that_no_layer_of_its_map_holds_are_nothing(detector: Detector) -> None:
    xyz = torch.rand(10, 3) * torch.tensor([20.0, 20.0, 0.0]) + torch.tensor([0.0, 0.0, 3.5])
    assert len(detector.detect(PointCloud(xyz, {"intensity": torch.rand(10)}))) == 0


def test_integers_and_binary_spikes_give_the_same() -> None:
    detector, seen = load_detector("e3dsnn-tiny").double(), []
    points = read_points(SAMPLE).values(("intensity",)).double()
    given = points, torch.zeros(len(points), dtype=torch.int64), 1

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0] if isinstance(inputs[0], Tensor) else inputs[0].features)

    with torch.no_grad():
        integers = detector(*given)
        spiking = unroll(detector)
        layers = [module for module in spiking.modules() if isinstance(module, SpikingLayer)]
        for layer in layers:
            layer.layer.register_forward_pre_hook(note)
        spikes = spiking(*given)
    assert all((integers[name] - spikes[name]).abs().max() < 1e-10 for name in integers)
    assert len(seen) >= len(layers) > 8
    assert all(((each == 0) | (each == 1)).all() for each in seen) and sum(each.sum() for each in seen) > 0


def test_the_command_takes_it_by_its_name(tmp_path: Path) -> None:
    options = ["--model", "e3dsnn-tiny", "--output", str(tmp_path / "found")]
    result = CliRunner().invoke(app, ["detect", str(SAMPLE), *options])
    assert result.exit_code == 0, result.output
    assert "vehicle" in result.stdout and {path.suffix for path in (tmp_path / "found").glob("sample*")} == {
        ".json", ".ply", ".png",
    }  # fmt: skip


def test_it_is_small_enough_for_a_package() -> None:
    assert (EMBEDDED / "e3dsnn-tiny.safetensors").stat().st_size < 8 << 20
