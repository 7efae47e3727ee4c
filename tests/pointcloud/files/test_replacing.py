"""Files appear whole or not at all, on a full disk too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pointcloud.files import replacing


def test_the_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.suffix == ".json" and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(str(path)) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_runs_write_the_same_file_without_meeting(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250)  # as long as names may be
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


# A limit on the size of files ends a write in the middle, as a full disk does.
CHILD = """
import resource, sys
from pathlib import Path
import torch
from pointcloud.detection import DetectorConfig
from pointcloud.detection.detector_config import DSVT_TINY
from pointcloud.detection.evaluation import draw_curves
from pointcloud.detection.training import Trainer
from pointcloud.files import write_points
from pointcloud.points import PointCloud

folder = Path(sys.argv[1])
cloud, trainer = PointCloud(torch.rand(100, 3), {"intensity": torch.rand(100)}), Trainer(DSVT_TINY)
writers = [lambda name=name: write_points(folder / name, cloud) for name in ("a.ply", "a.npy", "a.bin")]
writers += [lambda: trainer.save(folder), lambda: trainer.detector.save(folder / "a.safetensors")]
writers += [lambda: draw_curves({}, folder / "a.png")]
for limit in 0, 1000, 1500:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for number, write in enumerate(writers):
        try:
            write()
            print("no error from writer", number)
        except OSError as error:
            assert "too large" in str(error), error
"""


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    """100 points are 1,600 bytes, which a writer may hold back until it closes the file."""
    result = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert list(tmp_path.iterdir()) == []
