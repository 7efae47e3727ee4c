"""Clouds that are unlike those of training: without intensity, of other units, of another height."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pointcloud.boxes import Detections
from pointcloud.cli import app
from pointcloud.detection.inputs import USUAL_INTENSITY, Inputs, full_intensity, ground_height, outside_note
from pointcloud.files import read_points, write_points
from pointcloud.points import PointCloud
from pointcloud.voxels import VoxelGrid
from tests.pointcloud.files.test_files import write_las


def cloud(points: int = 500, **attributes: torch.Tensor) -> PointCloud:
    xyz = torch.rand(points, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([20.0, 20.0, 0.2])
    return PointCloud(xyz, attributes)


def test_points_without_intensity_get_one() -> None:
    prepared, notes = Inputs().prepare(cloud(), ("intensity",))
    assert (prepared.attributes["intensity"] == USUAL_INTENSITY).all() and list(notes) == ["intensity"]
    assert "0.15 is taken for all points; --intensity sets it" in notes["intensity"]
    prepared, notes = Inputs(intensity=0.3).prepare(cloud(), ("intensity",))
    assert torch.equal(prepared.attributes["intensity"], torch.full((500,), 0.3)) and not notes
    own = torch.linspace(0, 1, 500)
    prepared, notes = Inputs(intensity=0.3).prepare(cloud(intensity=own), ("intensity",))
    assert torch.equal(prepared.attributes["intensity"], own) and not notes
    assert not Inputs().prepare(cloud(), ())[0].attributes  # a network that takes none


def test_a_cloud_that_the_detector_hardly_sees_is_said() -> None:
    grid, points = VoxelGrid((-10, -10, -1), (10, 10, 3), (1, 1, 1)), cloud().xyz  # to 20 m along x and y
    assert not outside_note(points * 0.5, grid) and not outside_note(points - points.new_tensor([10, 10, 0]), grid)
    (note,) = outside_note(points, grid).values()
    assert note.startswith("2") and "(x -10 to 10, y -10 to 10, z -1 to 3 m around the sensor)" in note


@pytest.mark.parametrize("full", [255, 1023, 4095, 65535])
def test_intensities_of_other_units_are_divided(full: int) -> None:
    values = torch.linspace(0, full, 500).long()
    prepared, notes = Inputs().prepare(cloud(intensity=values), ("intensity",))
    assert (
        torch.allclose(prepared.attributes["intensity"], values / full) and f"up to {full}" in notes["full intensity"]
    )
    prepared, notes = Inputs(full_intensity=2.0 * full).prepare(cloud(intensity=values), ("intensity",))
    assert torch.allclose(prepared.attributes["intensity"], values / (2 * full)) and not notes


@pytest.mark.parametrize("full", [255, 65535])
def test_intensities_of_a_survey_are_divided_once(tmp_path: Path, full: int) -> None:
    write_las(tmp_path / "a.las", full=full)
    prepared, notes = Inputs().prepare(read_points(tmp_path / "a.las"), ("intensity",))
    assert (prepared.attributes["intensity"] - torch.linspace(0, 1, 50)).abs().max() < 1.01 / full
    assert f"up to {full}" in notes["full intensity"]


def test_one_odd_value_makes_no_other_unit() -> None:
    values = torch.rand(500)
    values[3] = 200
    assert full_intensity(values) == 1


def test_another_ground_is_said_and_taken_off() -> None:
    low = dataclasses.replace(cloud(intensity=torch.rand(500)), xyz=cloud().xyz - torch.tensor([0, 0, 1.8]))
    prepared, notes = Inputs().prepare(low, ("intensity",))
    assert torch.equal(prepared.xyz, low.xyz) and "at z = -1.8, --ground is 0: try --ground -1.8" in notes["ground"]
    inputs = Inputs(ground=-1.8)
    prepared, notes = inputs.prepare(low, ("intensity",))
    assert torch.allclose(prepared.xyz, cloud().xyz, atol=1e-6) and not notes
    found = Detections(torch.ones(2, 7), torch.ones(2), torch.zeros(2).long())
    assert torch.allclose(inputs.restore(found).boxes[0], torch.tensor([1, 1, -0.8, 1, 1, 1, 1]))
    assert ground_height(low.xyz[:50]) is None


def test_intensities_that_none_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"intensity must be in \[0, 1\], got 2.0"):
        Inputs(intensity=2.0)
    for full in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"full_intensity must be above 0, got {full}; give a finite number"):
            Inputs(full_intensity=full)
    with pytest.raises(ValueError, match="ground must be a height in metres, got nan; give a finite number"):
        Inputs(ground=float("nan"))
    with pytest.raises(ValueError, match="unknown layout 'other'; accepted: kitti, nuscenes, waymo"):
        Inputs(layout="other")


def test_the_command_looks_at_scans_unlike_its_own(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    from pointcloud.scenes import make_scene

    scene = make_scene(1_000_003)
    intensity = (scene.cloud.attributes["intensity"] * 255).round()
    xyz = scene.cloud.xyz
    np.savetxt(tmp_path / "a.xyz", xyz)
    np.savetxt(tmp_path / "b.xyz", xyz)
    write_points(tmp_path / "c.npy", PointCloud(xyz - torch.tensor([0, 0, 1.8]), {"intensity": intensity}))
    files = [str(tmp_path / name) for name in ("a.xyz", "b.xyz", "c.npy")]
    options = ["--output", str(tmp_path / "out"), "--no-pictures", "--threshold", "0.5"]
    result = CliRunner().invoke(app, ["detect", *files, *options])
    assert result.exit_code == 0, result.output
    assert [line.partition(": it")[0] for line in result.stderr.splitlines()] == [
        f"warning: {files[0]}",
        f"warning: {files[2]}",
        f"warning: {files[2]}",
    ]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["notes"] == {
        "intensity": 2,
        "full intensity": 1,
        "ground": 1,
    }
    again = ["detect", files[2], *options, "--ground", "-1.8", "--full-intensity", "255"]
    result = CliRunner().invoke(app, again)
    assert result.exit_code == 0 and not result.stderr
    found = json.loads((tmp_path / "out" / "c.json").read_text())["detections"]
    cars = torch.tensor([[one["x"], one["y"], one["z"] + 1.8] for one in found if one["class"] == "vehicle"])
    true = scene.boxes[scene.visible & (scene.classes == 0), :3]
    assert (torch.cdist(true, cars).amin(1) < 0.6).float().mean() > 0.8
