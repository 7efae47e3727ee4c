"""Files read by several threads at once: each gets its own points or error, and what they share is left as it was."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pointcloud.files import read_points, write_points
from pointcloud.points import PointCloud


def test_threads_read_whole_and_broken_files_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    whole, cut, faces = (tmp_path / f"{name}.ply" for name in ("whole", "cut", "faces"))
    write_points(whole, PointCloud(torch.rand(5000, 3)))
    content = whole.read_bytes()
    cut.write_bytes(content[:-30_000])
    # All vertices are there, and a face of three is cut short: open3d's log alone tells.
    more = b"element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    faces.write_bytes(content.replace(b"end_header\n", more, 1) + b"\x03\x00\x00")

    def points(path: Path) -> int | None:
        try:
            return len(read_points(path))
        except ValueError as error:
            assert str(error) == f"{path} cannot be read as .ply: it is cut short or of another kind"
            return None

    before = sys.stdout
    with ThreadPoolExecutor(9) as threads:
        printed = threads.submit(lambda: [print("upload failed") for _ in range(2000)])
        assert list(threads.map(points, 20 * [whole, cut, faces])) == 20 * [5000, None, None]
    assert sys.stdout is before and len(printed.result()) == 2000
    assert capsys.readouterr().out == 2000 * "upload failed\n"


def test_threads_leave_the_filters_of_warnings(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1 2 3\n" * 5000)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        assert {len(cloud) for cloud in threads.map(read_points, 40 * [tmp_path / "a.xyz"])} == {5000}
    assert list(warnings.filters) == before


@pytest.mark.parametrize("text", ["", "\n \n", "# made by hand\n  # twice\n"])
def test_a_text_without_rows_holds_no_points(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(ValueError, match="holds no points"):
        read_points(tmp_path / "a.xyz")
