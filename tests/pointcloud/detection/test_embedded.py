"""The detector that ships with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pointcloud.cli import app
from pointcloud.detection.detector_config import DSVT_TINY
from pointcloud.detection.evaluation import evaluate
from pointcloud.detection.shipped import EMBEDDED, SAMPLE, load_detector
from pointcloud.files import read_points, write_points
from pointcloud.scenes import DrivingScenes, make_scene


def test_it_finds_what_is_in_scenes_that_it_never_saw() -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    detector = load_detector("dsvt-tiny")
    assert detector.config == DSVT_TINY
    results = evaluate(detector, DrivingScenes("evaluation", 6))
    assert results["vehicle"].truths > 40 and results["vehicle"].curve.average_precision > 0.75
    assert results["pedestrian"].truths > 15 and results["pedestrian"].curve.average_precision > 0.6


def test_the_command_takes_it_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    write_points(tmp_path / "scan.ply", make_scene(1_000_003).cloud)
    result = CliRunner().invoke(app, ["detect", str(tmp_path / "scan.ply"), "--output", str(tmp_path / "found")])
    assert result.exit_code == 0, result.output
    assert "vehicle" in result.output
    assert {path.suffix for path in (tmp_path / "found").glob("scan*")} == {".json", ".ply", ".png"}


def test_a_sample_comes_along_and_nothing_else_is_needed(tmp_path: Path) -> None:
    scan = tmp_path / "sample.bin"
    for code in (0, 2):
        result = CliRunner().invoke(app, ["sample", str(scan)])
        assert result.exit_code == code, result.output
    assert "is there already; give another name" in result.stderr and len(read_points(scan)) == 23240
    result = CliRunner().invoke(app, ["detect", str(scan), "--output", str(tmp_path / "found")])
    assert result.exit_code == 0, result.output
    assert "11 vehicle" in result.stdout and "warning" not in result.output
    result = CliRunner().invoke(app, ["sample", str(tmp_path / "none" / "sample.bin")])
    assert result.exit_code == 2 and "there is no folder" in result.stderr


def test_the_sample_is_the_scene_that_it_says() -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    cloud, scene = read_points(SAMPLE), make_scene(1_000_003).cloud
    assert (cloud.values(("intensity",)) - scene.values(("intensity",))).abs().max() < 1e-4


def test_it_is_small_enough_for_a_package() -> None:
    assert (EMBEDDED / "dsvt-tiny.safetensors").stat().st_size < 8 << 20
