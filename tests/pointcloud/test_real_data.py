"""Scans that nobody here made: read, sent through every network, and written about."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import laspy
import pytest
import torch

pytest.importorskip("spconv.pytorch", exc_type=ImportError)
pytest.importorskip("open3d", exc_type=ImportError)

from pointcloud.classification.predict import predict_files
from pointcloud.detection.shipped import load_detector
from pointcloud.files import read_points
from pointcloud.points import PointCloud
from tests.pointcloud import real_data
from tests.pointcloud.classification.tiny_models import tiny_model

MOST_POINTS = 20_000
SCANS = real_data.scans()
MISSING = "no real scans: .venv/real-data is empty, `make test` fetches them"
on_real_scans = pytest.mark.parametrize(
    "path",
    SCANS or [pytest.param(Path(), marks=pytest.mark.skip(MISSING))],
    ids=lambda path: path.name,
)


def thinned(path: Path) -> PointCloud:
    cloud = read_points(path)
    step = -(-len(cloud) // MOST_POINTS)
    return PointCloud(cloud.xyz[::step].contiguous())


def holds_no_points(path: Path) -> bool:
    if path.suffix == ".ply":
        return False
    with laspy.open(path) as file:
        return file.header.point_count == 0


@on_real_scans
def test_real_scans_are_read_and_go_through_every_network(path: Path) -> None:
    if holds_no_points(path):
        with pytest.raises(ValueError, match="holds no points"):
            read_points(path)
        return
    cloud = thinned(path)
    assert torch.isfinite(cloud.xyz).all()
    for task, rows in (("shapes", 1), ("segments", len(cloud))):
        probabilities = tiny_model(task).predict(cloud)
        assert len(probabilities) == rows and torch.isfinite(probabilities).all()
    detector = load_detector("dsvt-tiny")
    xyz = cloud.xyz - cloud.xyz.mean(0)
    xyz = 30 * xyz / xyz.abs().amax().clamp(min=30)  # into its grid
    found = detector.detect(PointCloud(xyz.contiguous(), {"intensity": torch.full((len(xyz),), 0.15)}))
    assert torch.isfinite(found.boxes).all()


@pytest.mark.skipif(not SCANS, reason=MISSING)
def test_the_folder_is_segmented_and_only_empty_files_fail(tmp_path: Path) -> None:
    some = [path for path in SCANS if path.stat().st_size < 500_000]
    summary = predict_files(some, tiny_model("segments"), tmp_path, name="tiny", pictures=False)
    assert summary.done + len(summary.failed) == len(some)
    assert all(holds_no_points(Path(path)) for path in summary.failed)


def test_scans_are_taken_out_of_a_package_and_nothing_else(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "laspy-1.tar.gz", "w:gz") as package:
        for name in ("laspy-1/tests/a.las", "laspy-1/../../b.laz", "laspy-1/setup.py"):
            info = tarfile.TarInfo(name)
            info.size = 3
            package.addfile(info, io.BytesIO(b"abc"))
    assert real_data.unpack(tmp_path / "laspy-1.tar.gz", tmp_path / "scans") == 2
    assert {path.name for path in real_data.scans(tmp_path)} == {"a.las", "b.laz"}


def test_without_a_network_it_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*command: object, **options: object) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", fail)
    line = real_data.fetch("laspy", tmp_path)
    assert line.startswith("laspy: no source package") and "skipped" in line and not (tmp_path / "laspy").exists()
