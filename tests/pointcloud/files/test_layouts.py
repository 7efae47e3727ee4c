"""Which numbers the rows of a `.bin` hold: as said, or as its name tells unless that makes no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointcloud.files import read_points
from pointcloud.files.binary import LAYOUTS


def scan(path: Path, layout: str, rows: int = 1000) -> np.ndarray:
    """Write rows of a layout, intensities and what follows from 0 to 255, and return them."""
    random, columns = np.random.default_rng(0), len(LAYOUTS[layout])
    others = random.integers(0, 255, (rows, columns))
    table = np.concatenate([random.normal(0, 10, (rows, 3)), others], 1).astype("<f4")
    table.tofile(path)
    return table


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_that_is_said_is_taken(tmp_path: Path, layout: str) -> None:
    table = scan(tmp_path / "a.pcd.bin", layout)
    cloud = read_points(tmp_path / "a.pcd.bin", layout)
    assert tuple(cloud.attributes) == LAYOUTS[layout]
    assert np.array_equal(cloud.values(LAYOUTS[layout]).numpy(), table)


@pytest.mark.parametrize("layout", ["nuscenes", "waymo"])
@pytest.mark.parametrize("rows", [1000, 1001])  # of which the first also fill rows of KITTI's
def test_rows_of_more_numbers_are_not_taken_for_kitti(tmp_path: Path, layout: str, rows: int) -> None:
    scan(tmp_path / "a.bin", layout, rows)
    with pytest.raises(ValueError, match=rf"kitti.*; its rows may be those of {layout}: say which by --layout") as said:
        read_points(tmp_path / "a.bin")
    assert "\n" not in str(said.value) and ("cut short" in str(said.value)) == (rows == 1001)


def test_odd_intensities_alone_are_no_other_layout(tmp_path: Path) -> None:
    table = scan(tmp_path / "a.bin", "kitti")
    table[:, 3] -= 100
    table.tofile(tmp_path / "a.bin")
    assert np.array_equal(read_points(tmp_path / "a.bin").values(("intensity",)).numpy(), table)


def test_a_layout_is_for_bare_rows_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(50, 4)))
    assert len(read_points(tmp_path / "a.npy", "waymo")) == 50
    scan(tmp_path / "a.raw", "waymo")
    assert len(read_points(tmp_path / "a.raw", "waymo")) == 1000
    with pytest.raises(ValueError, match="unknown layout 'other'; accepted: kitti, nuscenes, waymo"):
        read_points(tmp_path / "a.npy", "other")
