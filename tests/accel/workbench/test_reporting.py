"""Written files: what is in them, and that nothing half-written is left."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from accel.errors import InputError
from accel.files import check_file, check_writable, replacing
from accel.models.records import CallRecord
from accel.workbench import reporting
from accel.workbench.comparison import Comparison
from accel.workbench.generation import Generation
from accel.workbench.pictures import page
from accel.workbench.reporting import write_comparison, write_generation

NAMES = {"dense.mp4", "sparse.mp4", "side_by_side.mp4", "report.json", "report.png"}


def comparison(prompt: str = "a red circle", psnr_db: float = 30.0) -> Comparison:
    frames = np.random.default_rng(0).random((5, 32, 48, 3))
    records = [
        CallRecord(step, 3, layer, "cond", "sparse" if step else "dense", 0.25, 0.1, None, (1, 2, 64, 16))
        for step in range(3)
        for layer in range(2)
    ]
    facts = {"model": "tiny", "method": "sparse-vdit", "prompt": prompt, "steps": 3, "tokens": 64, "dense_steps": 1}
    numbers = {"dense_seconds": 2.0, "sparse_seconds": 1.0, "speedup": 2.0, "psnr_db": psnr_db, "ssim": 0.9}
    return Comparison(frames, frames * 0.9, {**facts, **numbers, "attention_dense_seconds": 1.0}, records)


def read_video(path: Path, height: int, width: int) -> np.ndarray:
    # Imageio's own reader leaves pipes open, now and then.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    result = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert f"{width}x{height}" in result.stderr.decode()
    return np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3)


def test_comparison_writes_all_files_and_leaves_nothing_else(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    written = write_comparison(comparison(), folder)
    assert {path.name for path in written} == {path.name for path in folder.iterdir()} == NAMES
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_videos_keep_size_and_length(tmp_path: Path):
    write_comparison(comparison(), tmp_path)
    # 48 pixels are enlarged 6 times to be at least 256 wide, under 32 pixels of text.
    both = read_video(tmp_path / "side_by_side.mp4", 32 * 6 + 32, 2 * 48 * 6)
    assert len(both) == len(read_video(tmp_path / "dense.mp4", 32, 48)) == 5
    assert both[0, :32].max() > 200


def test_video_keeps_the_picture(tmp_path: Path):
    frames = np.broadcast_to(np.linspace(0, 1, 64)[None, None, :, None], (5, 32, 64, 3))
    write_generation(Generation(frames, {}, []), tmp_path)
    first = read_video(tmp_path / "video.mp4", 32, 64)[0] / 255
    assert np.abs(first - frames[0]).mean() < 0.03


def test_json_is_strict_also_for_identical_videos(tmp_path: Path):
    write_comparison(comparison(psnr_db=math.inf), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert found["psnr_db"] == "inf" and found["speedup"] == 2.0


def test_prompt_with_dollar_signs_is_no_mathematics(tmp_path: Path):
    assert write_comparison(comparison("$x_ costs $"), tmp_path)


@pytest.mark.parametrize("prompt", ["a red circle and " * 60, "W" * 900, "a\nb\n" * 30])
def test_no_prompt_runs_across_the_page_or_takes_it_all(prompt: str):
    canvas = page(comparison(prompt))
    canvas.draw()
    title = canvas.figure._suptitle.get_window_extent()
    width, height = canvas.get_width_height()
    assert title.x0 >= 0 and title.x1 <= width and title.height < 0.15 * height


def test_no_legend_covers_a_bar():
    canvas = page(comparison())
    canvas.draw()
    times = next(axes for part in canvas.figure.subfigs for axes in part.axes if axes.get_legend())
    legend = times.get_legend().get_window_extent()
    assert not any(legend.overlaps(bar.get_window_extent()) for bar in times.patches) and len(times.patches) == 4
    assert not legend.overlaps(times._left_title.get_window_extent())


def test_failure_leaves_older_files_and_no_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "report.json").write_text("old")

    def full(comparison: Comparison) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting, "page", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_comparison(comparison(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"
    with pytest.raises(InputError):
        write_comparison(comparison(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_check_writable_leaves_nothing_behind(tmp_path: Path):
    check_writable(tmp_path / "not" / "yet")
    assert not list(tmp_path.iterdir())


def test_a_file_may_lie_in_a_new_folder_and_be_no_folder(tmp_path: Path):
    check_file(None)
    check_file(tmp_path / "new" / "table.json")
    assert not list(tmp_path.iterdir())
    with replacing(tmp_path / "new" / "table.json") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "new" / "table.json").read_text() == "whole"
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        check_file(tmp_path / "new")


def test_check_writable_refuses_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be written"):
            check_writable(folder)
