"""Files damaged at random: a cloud of finite numbers or one ValueError, never a crash, a hang or another error.

The long form: `python -m tests.pointcloud.files.test_broken_files 10000`.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointcloud.files import read_points, write_points
from pointcloud.points import PointCloud

HEADER = 400  # bytes from the start, where most damage is done
SUFFIXES = (".bin", ".pcd.bin", ".npy", ".xyz", ".ply", ".pcd", ".las", ".laz")


def whole_files(folder: Path, suffix: str) -> list[bytes]:
    """Return files of a kind in its forms, 200 points each."""
    path, xyz = folder / f"whole{suffix}", np.random.default_rng(0).normal(0, 10, (200, 3))
    if suffix in (".las", ".laz"):
        return [_las(path, xyz, version, form) for version, form in (("1.2", 3), ("1.4", 6))]
    if suffix == ".pcd":
        return [_pcd(path, xyz, **kind) for kind in ({}, {"write_ascii": True}, {"compressed": True})]
    if suffix == ".xyz":
        np.savetxt(path, xyz)
    elif suffix == ".pcd.bin":
        np.pad(xyz, ((0, 0), (0, 2))).astype("<f4").tofile(path)
    else:
        write_points(path, PointCloud(torch.from_numpy(xyz).float(), {"intensity": torch.rand(200)}))
    return [path.read_bytes()]


def _las(path: Path, xyz: np.ndarray, version: str, form: int) -> bytes:
    laspy = pytest.importorskip("laspy")
    pytest.importorskip("lazrs")
    las: Any = laspy.create(point_format=form, file_version=version)
    las.x, las.y, las.z = xyz.T
    las.write(str(path))
    return path.read_bytes()


def _pcd(path: Path, xyz: np.ndarray, **kind: bool) -> bytes:
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    assert open3d.t.io.write_point_cloud(str(path), open3d.t.geometry.PointCloud(xyz.astype("f4")), **kind)
    return path.read_bytes()


def damaged(whole: bytes, generator: random.Random) -> bytes:
    """Return a file with bytes changed, lost or added, or cut short, one to five times."""
    content = bytearray(whole)
    for _ in range(generator.choice((1, 1, 2, 5))):
        place = generator.randrange(min(len(content), HEADER) if generator.random() < 0.8 else len(content))
        length = generator.randrange(1, 30)
        kind = generator.randrange(5)
        if kind == 0:
            content[place] = generator.randrange(256)
        elif kind == 1:
            content[place : place + 4] = b"\xff" * len(content[place : place + 4])
        elif kind == 2 and len(content) > length:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = generator.randbytes(length)
        elif place:
            del content[place:]
    return bytes(content)


def read_damaged(folder: Path, suffix: str, count: int, seed: int = 0) -> int:
    """Return how many of so many damaged files could still be read."""
    generator, files, path = random.Random(seed), whole_files(folder, suffix), folder / f"damaged{suffix}"
    read = 0
    for number in range(count):
        path.write_bytes(damaged(generator.choice(files), generator))
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown properties, which open3d leaves out
                cloud = read_points(path)
            assert cloud.xyz.isfinite().all(), f"{suffix} {number}"
            read += 1
        except ValueError as error:
            assert str(path) in str(error), f"{suffix} {number}"
        assert time.perf_counter() - start < 60, f"{suffix} {number}"
    return read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_are_read_or_refused(tmp_path: Path, suffix: str) -> None:
    if suffix == ".ply":
        pytest.importorskip("open3d", exc_type=ImportError)
    assert 0 < read_damaged(tmp_path, suffix, 100) < 100


if __name__ == "__main__":
    for kind in SUFFIXES:
        with tempfile.TemporaryDirectory() as place:
            print(
                kind, read_damaged(Path(place), kind, int(sys.argv[1]), seed=1), "of", sys.argv[1], "read", flush=True
            )
